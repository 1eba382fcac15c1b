"""`load_weights`: from a file to parameters in one call."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dilax.models import DilatedNet, init_params, param_shapes
from dilax.weights.caffe import read_caffe
from dilax.weights.flat import read_npz, read_safetensors
from dilax.weights.inputs import Inputs
from dilax.weights.keras import read_keras
from dilax.weights.match import check_weights, flat_shapes
from dilax.weights.place import place_weights
from dilax.weights.pytorch import read_torch
from dilax.weights.stored import Weights, reading

_READERS: dict[str, tuple[str, Callable[[Path], Weights]]] = {
    ".caffemodel": ("Caffe", read_caffe),
    ".h5": ("Keras", read_keras),
    ".hdf5": ("Keras", read_keras),
    ".pth": ("PyTorch", read_torch),
    ".pt": ("PyTorch", read_torch),
    ".safetensors": ("safetensors", read_safetensors),
    ".npz": ("npz", read_npz),
}


def read_weights(path: str | Path, inputs: Inputs | None = None) -> Weights:
    """What a file of weights holds, under our names; the values are read later.

    Args:
        path: `.caffemodel`, `.h5`, `.hdf5`, `.pth`, `.pt`, `.safetensors` or `.npz`.
        inputs: how the file's network takes its images, where that is not what the kind
            of the file says.

    Raises:
        ValueError: naming the file, if it is missing, of another kind, or broken. No
            file can make this run code or reserve memory for more than it holds.

    Example:
        >>> import tempfile
        >>> from dilax.models import FrontEnd, Layer, init_params
        >>> from dilax.weights import save_weights
        >>> model = DilatedNet(FrontEnd(5, (Layer("conv1", 3, 4),)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_weights(init_params(model, seed=1), f"{folder}/net.npz")
        ...     sorted(read_weights(f"{folder}/net.npz").tensors)[:1]
        ['front_end/conv1/bias']
    """
    path = Path(path).expanduser()
    if path.suffix not in _READERS:
        raise ValueError(
            f"{path}: weights are read from files that end in {', '.join(_READERS)}"
        )
    kind, read = _READERS[path.suffix]
    with reading(path, kind):
        weights = read(path)
    if inputs is None:
        return weights
    return Weights(weights.path, weights.kind, weights.tensors, inputs)


def load_weights(
    path: str | Path,
    model: DilatedNet,
    *,
    allow_missing: Sequence[str] = (),
    reset: Sequence[str] = (),
    mean: tuple[float, ...] | None = None,
    inputs: Inputs | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Loads weights of Caffe, Keras, PyTorch, safetensors or NumPy; prints a report.

    It may hold VGG-16 trained on ImageNet (whole, or as `vgg_conv`), one of the four
    released networks, or what `save_weights` wrote. Dense layers become convolutions;
    the first layer is rewritten for images as ours are, BGR on the 0..255 scale minus a
    mean pixel, where the file's network takes them otherwise.

    Args:
        path: see `read_weights`.
        model: the network, of any width that the file has.
        allow_missing: layers that the file may lack: beginnings of names or globs, such
            as `"final"`, `"ctx"`, `"context"`. They keep the initialisation.
        reset: layers that shall keep the initialisation though the file has them, for
            other classes.
        mean: the mean pixel (B, G, R) that our images have subtracted, `spec.mean`.
            None: that which the file's network expects (`read_weights(path).mean`).
        inputs: see `read_weights`.
        seed: of the initialisation.

    Returns:
        Parameters as `model.init` gives them, float32.

    Raises:
        ValueError: naming the layers that are missing, of another shape (with both), or
            not finite; or the file, if it cannot be read.

    Example:
        >>> import contextlib, io, tempfile
        >>> from dilax.models import FrontEnd, Layer, init_params
        >>> from dilax.weights import save_weights
        >>> model = DilatedNet(FrontEnd(5, (Layer("conv1", 3, 4),)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_weights(init_params(model, seed=1), f"{folder}/net.npz")
        ...     with contextlib.redirect_stdout(io.StringIO()):  # its report
        ...         params = load_weights(f"{folder}/net.npz", model)
        >>> params["front_end"]["conv1"]["kernel"].shape
        (3, 3, 3, 4)
    """
    weights = read_weights(path, inputs)
    initial = param_shapes(model, channels := len(mean) if mean else 3)
    options: dict[str, Any] = {"allow_missing": allow_missing, "reset": reset}
    known = check_weights(weights, flat_shapes(initial), **options)
    if known.missing or known.reset:
        initial = init_params(model, seed, channels)
    params, report = place_weights(weights, model, initial, mean=mean, **options)
    print(report)
    return params
