"""Where an array lies in the device, by how deep it is. Pragmas and estimates ask here, so that they agree."""

from __future__ import annotations

import enum

FEW_WORDS = 8
"""Fewer words are registers: they may be written and read again in neighbouring cycles."""
_DISTRIBUTED = 128
"""Up to so many words are made from look-up tables, 64 of a bit in each; more from memory blocks."""
_SHIFTED = 32
"""FIFOs of up to so many beats are shift registers."""


class Storage(enum.Enum):
    """What an array is made from; the value is the vendor's word for it."""

    REGISTERS = "registers"
    LUTRAM = "lutram"
    BRAM = "bram"
    SHIFT = "srl"


def storage_of(words: int) -> Storage:
    """Where a memory of so many words lies."""
    if words < FEW_WORDS:
        return Storage.REGISTERS
    return Storage.LUTRAM if words <= _DISTRIBUTED else Storage.BRAM


def fifo_storage(depth: int) -> Storage:
    """Where a FIFO of so many beats lies."""
    if depth <= _SHIFTED:
        return Storage.SHIFT
    return Storage.LUTRAM if depth <= _DISTRIBUTED else Storage.BRAM
