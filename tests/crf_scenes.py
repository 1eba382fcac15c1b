"""Small images and probabilities, and pydensecrf's marginals, for the CRF's tests."""

import numpy as np
from PIL import Image

REFERENCE = {
    "spatial_sigma": 3.0,
    "spatial_weight": 3.0,
    "bilateral_sigma_xy": 80.0,
    "bilateral_sigma_rgb": 13.0,
    "bilateral_weight": 10.0,
    "iterations": 5,
}
DEEPLAB = REFERENCE | {
    "bilateral_sigma_xy": 50.0,
    "bilateral_sigma_rgb": 10.0,
    "bilateral_weight": 5.0,
    "iterations": 10,
}


def draw_probabilities(height, width, classes, seed=0, cell=1):
    """Random ones, float32, constant over cells of `cell` pixels."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(-(-height // cell), -(-width // cell), classes)) * 2
    logits = logits.repeat(cell, 0).repeat(cell, 1)[:height, :width]
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return (powers / powers.sum(-1, keepdims=True)).astype(np.float32)


def draw_image(height, width, channels=3, seed=0):
    """Two flat halves and some noise, uint8."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 20, (height, width, channels))
    image[:, width // 2 :] += 100
    return image.astype(np.uint8)


def photographs(real_data, count):
    """The first ones of VOC, by name."""
    folder = real_data / "VOCdevkit/VOC2012/JPEGImages"
    for path in sorted(folder.iterdir())[:count]:
        with Image.open(path) as file:
            yield np.array(file.convert("RGB"))


def build_pydensecrf(densecrf, probabilities, image, spatial, bilateral, **options):
    """Its CRF, from (sigma, compat) and (sigma_xy, sigma_rgb, compat)."""
    h, w, k = probabilities.shape
    crf = densecrf.DenseCRF2D(w, h, k)
    unary = -np.log(np.maximum(probabilities, 1e-8)).reshape(-1, k).T
    crf.setUnaryEnergy(np.ascontiguousarray(unary, np.float32))
    crf.addPairwiseGaussian(sxy=spatial[0], compat=spatial[1], **options)
    sxy, srgb, compat = bilateral
    crf.addPairwiseBilateral(sxy=sxy, srgb=srgb, rgbim=image, compat=compat, **options)
    return crf


def reference_marginals(densecrf, probabilities, image, settings, **options):
    """pydensecrf's marginals (h, w, k) for the settings of a `DenseCRF`."""
    s = settings
    spatial = s["spatial_sigma"], s["spatial_weight"]
    names = "bilateral_sigma_xy", "bilateral_sigma_rgb", "bilateral_weight"
    bilateral = tuple(s[name] for name in names)
    crf = build_pydensecrf(
        densecrf, probabilities, image, spatial, bilateral, **options
    )
    marginals = np.array(crf.inference(s["iterations"]))
    h, w, k = probabilities.shape
    return marginals.reshape(k, h, w).transpose(1, 2, 0)


def gaussian_sums(features, values):
    """Σ_j exp(−½‖f_i − f_j‖²) v_j by a double loop."""
    features, values = np.asarray(features, float), np.asarray(values, float)
    out = np.zeros_like(values)
    for i, here in enumerate(features):
        for j, there in enumerate(features):
            out[i] += np.exp(-0.5 * np.sum((here - there) ** 2)) * values[j]
    return out
