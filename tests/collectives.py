"""The communication of a compiled program, read from XLA's text."""

import math
import re
from collections import Counter

KINDS = "all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all"
ARRAY = re.compile(r"([a-z]+)(\d*)\w*\[([\d,]*)\]")  # f32[2,3]


def collective_bytes(compiled):
    """Bytes of the results of each kind of collective, on one device."""
    found = Counter()
    for line in compiled.as_text().splitlines():
        if match := re.search(rf"= (.*?) ({KINDS})(?:-start)?\(", line):
            for _, bits, sizes in ARRAY.findall(match[1]):
                count = math.prod(int(n) for n in sizes.split(",") if n)
                found[match[2]] += count * (int(bits or 8) // 8)
    return found
