"""What became of the layers of a file, as a table."""

import dataclasses
from typing import NamedTuple

from tabulate import tabulate


class Row(NamedTuple):
    """A layer of the file, or one of the network that the file lacks.

    Attributes:
        layer: its name in the file; empty for one that the file lacks.
        shape: of its arrays in the file.
        where: the layer that it became, with its kernel's shape, or what else happened.

    Example:
        >>> Row("conv1_1", "64 x 3 x 3 x 3", "front_end/conv1_1").layer
        'conv1_1'
    """

    layer: str
    shape: str
    where: str


@dataclasses.dataclass(frozen=True)
class Report:
    """What was loaded and what was not; `print` shows it as a table.

    Attributes:
        title: the file and its kind.
        rows: a layer each.
        loaded: names of the parameters that come from the file.
        missing: of those that the file lacks; they keep the initialisation.
        reset: of those that were to keep the initialisation.
        left_over: names of the file's arrays that no parameter takes.
        notes: what was done to the values.

    Example:
        >>> rows = (Row("conv1", "(3, 3, 3, 4)", "conv1"),)
        >>> str(Report("net.npz", rows, ("conv1/kernel",))).splitlines()[0]
        'net.npz'
    """

    title: str
    rows: tuple[Row, ...]
    loaded: tuple[str, ...]
    missing: tuple[str, ...] = ()
    reset: tuple[str, ...] = ()
    left_over: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        heads = ("in the file", "shape", "became")
        counts = (
            f"{len(self.loaded)} parameters loaded, {len(self.missing)} missing, "
            f"{len(self.reset)} reset; {len(self.left_over)} arrays left over"
        )
        table = tabulate(self.rows, heads, disable_numparse=True)
        return "\n".join((self.title, "", table, "", counts, *self.notes))
