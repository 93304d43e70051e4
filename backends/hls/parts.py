"""The parts that a design can be made for, with what they hold. Figures are those of the vendor's product tables."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from tersor.ir.errors import LoweringError


@dataclass(frozen=True)
class Part:
    """An FPGA. lut: 6-input look-up tables. dsp: multipliers. bram: blocks of 18 Kb.

    clock: MHz that dataflow designs usually reach. memory: bits that reach it from outside in a cycle of that clock.
    """

    name: str
    number: str
    lut: int
    dsp: int
    bram: int
    clock: int
    memory: int


PARTS: dict[str, Part] = {
    part.name: part
    for part in (
        Part("zynq7020", "xc7z020clg400-1", 53_200, 220, 280, 100, 64),
        Part("zu3eg", "xczu3eg-sbva484-1-e", 70_560, 360, 432, 200, 128),
        Part("zu9eg", "xczu9eg-ffvb1156-2-e", 274_080, 2_520, 1_824, 250, 128),
        Part("artix7_100t", "xc7a100tcsg324-1", 63_400, 240, 270, 100, 64),
        Part("u50", "xcu50-fsvh2104-2-e", 871_680, 5_952, 2_688, 300, 512),
    )
}

USABLE = {"lut": 0.7, "dsp": 0.9, "bram": 0.9}
"""Shares that a design may take; fuller parts seldom route."""


def find_part(name: str) -> Part:
    """The part of that name, or of that part number. Raises LoweringError with the nearest name."""
    for part in PARTS.values():
        if name in (part.name, part.number):
            return part
    near = difflib.get_close_matches(name, PARTS, n=1, cutoff=0.4)
    hint = f"part={near[0]!r}" if near else "add a row to tersor.backends.hls.parts.PARTS"
    raise LoweringError("unknown part", expected=", ".join(PARTS), found=repr(name), hint=hint)
