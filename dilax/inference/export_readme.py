"""What an exported network says of itself to whoever has to run it."""

from string import Template
from typing import Any

_TEXT = Template("""\
# A network for $dataset

Written by dilax, which is not needed to run it: `pip install jax flatbuffers numpy`.

```python
import json

import jax
import numpy as np
from jax import export

file = np.load("$file")  # a zip: .npy members come as arrays, others as bytes
about = json.loads(file["about.json"])
network = export.deserialize(bytearray(file["network.jax_export"]))
names = [name for name in file.files if name.startswith("weights/")]
weights = jax.device_put({name: file[name] for name in names})
options = about["compiler_options"].get(jax.default_backend())
run = jax.jit(network.call, compiler_options=options)


def predict(image):
    margin, stride, step = (about[n] for n in ("margin", "stride", "output_stride"))
    ends = [(margin, margin + -n % stride) for n in image.shape[:2]]
    padded = np.pad(image, (*ends, (0, 0)), "reflect")
    rows, columns = (-(-n // step) for n in image.shape[:2])
    return np.asarray(run(weights, padded[None])[0])[:rows, :columns]
```

**Input.** Images $input_shape
of $pixels, 0 to $top, channels $channels; the mean pixel is subtracted inside.
$margin pixels of surroundings belong on every side, and the sizes are those with
`rows` and `columns` of at least $least. Others are refused with an error that names
them. Each new size is compiled once.$scaling

**Output.** $output $output_shape: $meaning.
Classes, their colours (RGB) and the numbers used above stand in `about.json`.

**Platforms.** $platforms. Convolutions run at the precision that JAX takes by
default, which is below float32 on GPUs (TF32) and TPUs (bfloat16).

**CPUs.** The compiler options in `about.json`, if any, are not part of the network.
Without them, XLA's own choice of convolutions may be several times slower. They are
experimental: where your version refuses them, pass `compiler_options=None`.

**Versions.** Exported by JAX $jax. JAX promises to run it with a JAX and jaxlib up to
six months newer and three weeks older, see "Compatibility guarantees" on
<https://docs.jax.dev/en/latest/export/export.html>. For other compilers,
`network.mlir_module_serialized` is portable StableHLO.
""")

_MEANINGS = {
    "probabilities": "softmax over the classes, {at}",
    "logits": "scores before the softmax, {at}",
    "labels": "the likeliest class of each pixel within the margin",
}


def readme(file: str, about: dict[str, Any]) -> str:
    """The text, with a program that runs the network.

    Args:
        file: name of the exported file.
        about: what stands in its `about.json`.
    """
    step, scale = about["output_stride"], about["scale"]
    at = "at every pixel" if step == 1 else f"at every {step}th pixel"
    words = {
        "file": file,
        "top": 255 if about["pixels"] == "uint8" else 65535,
        "meaning": _MEANINGS[about["output"]].format(at=at),
        "scaling": f"\nResize images by {scale:g} first." if scale != 1 else "",
        "platforms": ", ".join(about["platforms"]),
    }
    return _TEXT.substitute(about | words)
