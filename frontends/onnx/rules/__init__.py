"""The import rules, a module a group of operators. Importing this package registers them."""

from . import (
    control,
    convolution,
    creation,
    elementwise,
    indexing,
    linear,
    movement,
    normalization,
    pooling,
    quantization,
    quantized_operators,
    reductions,
    resizing,
    shapes,
)

__all__ = [
    "control",
    "convolution",
    "creation",
    "elementwise",
    "indexing",
    "linear",
    "movement",
    "normalization",
    "pooling",
    "quantization",
    "quantized_operators",
    "reductions",
    "resizing",
    "shapes",
]
