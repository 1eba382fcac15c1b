"""The networks of dilax in PyTorch, built from a model's tables, for comparison."""

from typing import Any

import numpy as np

from dilax.models import DilatedNet


def torch_network(torch: Any, model: DilatedNet, params: Any = None) -> Any:
    """Return a `torch.nn.Module`: images (b, 3, h, w) → logits (b, k, h', w').

    Args:
        torch: the module.
        model: a network that pads its front end's input and not its layers.
        params: its parameters; None keeps PyTorch's random initialization.

    Raises:
        ValueError: for a model that upsamples.
    """
    if model.upsample:
        raise ValueError("the twin does not upsample: --against= or --what=step")
    nn = torch.nn
    layers, channels = [], 3

    def conv(part, name, out, kernel, dilation=1, padding=0):
        layer = nn.Conv2d(channels, out, kernel, dilation=dilation, padding=padding)
        if params is not None:
            _fill(torch, layer, params[part][name])
        return layer

    front_end = model.front_end
    for row in front_end.layers:
        if row.channels == 0:
            layers.append(nn.MaxPool2d(row.kernel, ceil_mode=True))
            continue
        out = front_end.channels(row)
        layers += [
            conv("front_end", row.name, out, row.kernel, row.dilation),
            nn.ReLU(inplace=True),
        ]
        layers += [nn.Dropout(row.dropout)] if row.dropout else []
        channels = out
    classes = model.num_classes
    layers.append(conv("front_end", front_end.final_name, classes, 1))
    context, channels = model.context, classes
    for row in context.layers if context else ():
        name, out = context.prefix + row.name, classes * row.multiplier
        layers += [
            conv("context", name, out, 3, row.dilation, row.dilation),
            nn.ReLU(inplace=True),
        ]
        channels = out
    if context:
        layers.append(conv("context", context.prefix + "final", classes, 1))
    return nn.Sequential(*layers)


def _fill(torch: Any, layer: Any, params: Any) -> None:
    kernel = np.array(params["kernel"]).transpose(3, 2, 0, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(kernel))
        layer.bias.copy_(torch.from_numpy(np.array(params["bias"])))
