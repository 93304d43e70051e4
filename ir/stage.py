"""The stages that a Program is lowered through."""

from __future__ import annotations

import enum


class Stage(enum.Enum):
    """How far a Program is lowered. It runs at every stage.

    FLOAT: ATen operators on float tensors.
    FAKE_QUANT: the same, with `tersor::fake_quantize` marking which values live on an integer grid.
    INTEGER: `tersor::int_*` operators between quantize and dequantize at the edges.
    """

    FLOAT = "float"
    FAKE_QUANT = "fake_quant"
    INTEGER = "integer"

    def __str__(self) -> str:
        return self.value


ALL_STAGES = frozenset(Stage)
