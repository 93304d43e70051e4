"""What a latency is worth: the target's own clock, or something that stands in for the target."""

from __future__ import annotations

import enum


class Clock(enum.Enum):
    """How a latency was found.

    MEASURED: the target ran it. MODELLED: computed from a table or a formula. EMULATED: an emulator ran the target's
    instructions on another processor. SIMULATED: a program that computes what the target would. The last two say
    nothing of the target's speed.
    """

    MEASURED = "measured"
    MODELLED = "modelled"
    EMULATED = "emulated"
    SIMULATED = "simulated"

    def __str__(self) -> str:
        return self.value

    @property
    def mark(self) -> str:
        """What tables write beside the figure; nothing where it was measured on the target."""
        return "" if self is Clock.MEASURED else f" ({self.value})"
