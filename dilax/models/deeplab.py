"""DeepLab (Chen et al. 2015): VGG-16 at stride 8, as tables for `FrontEnd`.

Pools are 3×3 and keep their centres on pixels 0, 8, 16, …; the last two are at stride
1, and conv5 is dilated by 2 for that. Everything is padded inside. Scores stand on
image pixels 8i, so that labels are sampled there, and upsampled top-left aligned.

Source: §3.1, §4.1 and Table 1 of the paper; the released network definitions, of which
the one with a large field of view averages the last pool's maps besides.
"""

from dilax.models.front_end import VGG16, Branch, Layer, Pool

_NAMES = ("conv1", "conv2", "conv3", "conv4", "conv5")


def _table(*head: Layer | Pool) -> tuple[Layer | Pool, ...]:
    """The front end's convolutions with other pools, and a head."""
    rows: list[Layer | Pool] = []
    for number, name in enumerate(_NAMES, 1):
        rows += [row for row in VGG16 if row.name.startswith(name)]
        rows.append(Pool(f"pool{number}", 3, 2 if number <= 3 else 1))
    return (*rows, *head)


DEEPLAB = _table(
    Layer("fc6", 4, 4096, dilation=4, dropout=0.5), Layer("fc7", 1, 4096, dropout=0.5)
)
DEEPLAB_7X7 = tuple(
    row._replace(kernel=7) if isinstance(row, Layer) and row.name == "fc6" else row
    for row in DEEPLAB
)
DEEPLAB_LARGE_FOV = _table(
    Pool("pool5a", 3, average=True),
    Layer("fc6", 3, 1024, dilation=12, dropout=0.5),
    Layer("fc7", 1, 1024, dropout=0.5),
)
# Of DeepLab-MSc: scores from the image and from the first four pools.
MULTI_SCALE = (
    Branch("", 8),
    Branch("pool1", 4),
    Branch("pool2", 2),
    Branch("pool3", 1),
    Branch("pool4", 1),
)
