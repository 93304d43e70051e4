"""What an engine is made of: its kernels, what they read and write, and the ONNX nodes that each came from."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

LAYER = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
"""How builders name the ONNX nodes that a kernel stands for."""

DTYPES = {
    "float": "float32",
    "half": "float16",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "fp8": "float8",
    "fp8_e4m3": "float8",
    "fp4": "float4",
    "fp4_e2m1": "float4",
    "fp32": "float32",
    "fp16": "float16",
}
"""The names of types in plans and in the inspector, in lower case, as torch has them; others have the same name."""

PRODUCTS = frozenset({"int4", "int8", "float4", "float8", "float16", "bfloat16", "float32"})
"""Types that are multiplied; others are indices and masks."""

_BITS = {"int4": 4, "float4": 4, "int8": 8, "uint8": 8, "float8": 8, "bool": 8, "float16": 16, "bfloat16": 16}


@dataclass(frozen=True)
class Port:
    """A tensor that a kernel reads or writes. `shape` has None for a dynamic size; `stored`: a constant's bytes."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    stored: int | None = None

    @property
    def constant(self) -> bool:
        """Whether the engine holds its values."""
        return self.stored is not None

    @property
    def dense(self) -> int:
        """The bytes that its values take when none is left out; 0 where a size is dynamic."""
        sizes = [size for size in self.shape if size is not None]
        return math.ceil(math.prod(sizes) * _BITS.get(self.dtype, 32) / 8) if len(sizes) == len(self.shape) else 0

    @property
    def sparse(self) -> bool:
        """Whether a constant is stored without its zeros."""
        return self.stored is not None and 0 < self.stored < self.dense


@dataclass(frozen=True)
class Kernel:
    """One step of an engine. `kind` is the builder's word for it, `layers` the ONNX nodes that it computes."""

    kind: str
    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    layers: tuple[str, ...]

    @property
    def attends(self) -> bool:
        """Whether it is attention as a whole."""
        return "mha" in self.name or "attention" in self.kind.lower()

    @property
    def weight(self) -> Port | None:
        """The constant that activations are multiplied with: the largest that is no bias; None in a product of two."""
        if self.attends:
            return None
        constants = [port for port in self.inputs if port.constant and len(port.shape) > 1 and port.dtype in PRODUCTS]
        matrices = [port for port in constants if sum(size != 1 for size in port.shape) > 1]
        if not matrices and len(self.activations) > 1:
            return None
        return max(matrices or constants, key=lambda port: math.prod(size or 1 for size in port.shape), default=None)

    @property
    def activations(self) -> tuple[Port, ...]:
        """What is computed while the engine runs and multiplied or added to."""
        return tuple(port for port in self.inputs if not port.constant and port.dtype in PRODUCTS)


def dtype_of(text: str) -> str:
    """A type as torch names it, from a plan's or the inspector's word."""
    return DTYPES.get(text.lower(), text.lower())
