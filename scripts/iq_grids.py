"""Write the tables of GGUF's IQ2 and IQ3 formats as the native kernels read them.

    python scripts/iq_grids.py > src/loire/kernels/native/source/kernels/grids.h

The tables are the gguf library's: each entry, of eight or four values, packed in two or three bits
a value, the first one lowest.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from gguf import quants

HEAD = """// The tables of GGUF's IQ2 and IQ3 formats: eight or four codes, of two or three bits
// each, the first one lowest. Written by scripts/iq_grids.py from those of the gguf library.

#pragma once

#include <cstdint>

namespace loire {
namespace {
"""
FORMATS = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")
PER_LINE = 14


def main() -> None:
    """Print the header."""
    print(HEAD)
    for name in FORMATS:
        kind = getattr(quants, name)
        if name != "IQ2_XS" and name != "IQ2_S":  # (all of IQ2 have the same values)
            shown = "IQ2" if name == "IQ2_XXS" else name
            values = ", ".join(map(str, kind.grid_map))
            print(f"constexpr int8_t {shown}_VALUES[{len(kind.grid_map)}] = {{{values}}};")
        entries = list(packed(kind))
        print(f"constexpr uint16_t {name}_GRID[{len(entries)}] = {{")
        for first in range(0, len(entries), PER_LINE):
            line = ", ".join(map(str, entries[first : first + PER_LINE]))
            print(f"    {line},")
        print("};\n")
    print("}  // namespace\n}  // namespace loire")


def packed(kind: Any) -> Iterator[int]:
    """The entries of a format's table."""
    kind.init_grid()
    bits = 2 if len(kind.grid_map) == 3 else 3
    places = {value: place for place, value in enumerate(kind.grid_map)}
    for entry in np.asarray(kind.grid).reshape(kind.grid_shape):
        yield sum(places[int(value)] << (bits * i) for i, value in enumerate(entry))


if __name__ == "__main__":
    main()
