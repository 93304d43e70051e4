"""Typed descriptions of quantization: a grid, a scheme, and the numbers that place a grid."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from .errors import DescriptionError


class Granularity(enum.Enum):
    """Over what one scale is shared: the whole tensor, or one output channel of a weight."""

    PER_TENSOR = "per_tensor"
    PER_CHANNEL = "per_channel"


class Observer(enum.Enum):
    """How a range is read from data.

    MIN_MAX: the extremes ever seen. MOVING_AVERAGE: the extremes of each batch, exponentially averaged.
    PERCENTILE: the values between two quantiles. MSE: the range with the least squared rounding and clipping error.
    ENTROPY: the range with the least Kullback-Leibler divergence. OUTPUT: the range with the least squared error of the
    outputs of the linears that read it; MSE where other operators read it.
    """

    MIN_MAX = "min_max"
    MOVING_AVERAGE = "moving_average"
    PERCENTILE = "percentile"
    MSE = "mse"
    ENTROPY = "entropy"
    OUTPUT = "output"


@dataclass(frozen=True)
class QuantType:
    """An integer grid: q stands for (q - zero_point) * scale.

    Values are stored as signed integers. A symmetric type has zero point 0 and leaves out the most negative value, so
    that it is [-127, 127] at 8 bits and a product of two values always fits; an asymmetric one is [-128, 127].

    bits: 2 to 8. symmetric: with zero point 0. granularity: one scale a tensor or one a channel, which is symmetric.

    Raises DescriptionError on other bits, and on an asymmetric grid a channel.
    """

    bits: int = 8
    symmetric: bool = False
    granularity: Granularity = Granularity.PER_TENSOR

    def __post_init__(self) -> None:
        bits: object = self.bits  # of a caller whose types nobody checks
        if not isinstance(bits, int) or not 2 <= bits <= 8:
            raise DescriptionError(
                "a grid cannot have these bits",
                expected="a whole number, 2 to 8",
                found=repr(self.bits),
                hint="skip=[...] leaves a layer in float",
            )
        if not isinstance(self.granularity, Granularity):
            names = ", ".join(f"Granularity.{kind.name}" for kind in Granularity)
            raise DescriptionError("not a granularity", expected=names, found=repr(self.granularity))
        if self.granularity is Granularity.PER_CHANNEL and not self.symmetric:
            raise DescriptionError(
                "a grid with a scale a channel is symmetric: integer kernels take one zero point a tensor",
                expected="symmetric=True",
                found="symmetric=False",
                hint="for weights with zero points: QuantizeWeights(bits, symmetric=False)",
            )

    @property
    def qmin(self) -> int:
        """The least stored value."""
        return -(1 << (self.bits - 1)) + (1 if self.symmetric else 0)

    @property
    def qmax(self) -> int:
        """The greatest stored value."""
        return (1 << (self.bits - 1)) - 1

    def __str__(self) -> str:
        kind = "symmetric" if self.symmetric else "asymmetric"
        return f"int{self.bits} {kind} {self.granularity.value}"


@dataclass(frozen=True)
class Scheme:
    """What `Quantize` puts values on.

    activation: per tensor. weight: symmetric. Raises DescriptionError on others: integer kernels take nothing else.
    """

    activation: QuantType = QuantType(8, symmetric=False)
    weight: QuantType = QuantType(8, symmetric=True, granularity=Granularity.PER_CHANNEL)

    def __post_init__(self) -> None:
        if not self.weight.symmetric:
            raise DescriptionError(
                "weights are quantized symmetrically: no target multiplies by a weight's zero point",
                expected="weight=QuantType(bits, symmetric=True)",
                found=str(self.weight),
                hint="for weights alone, with zero points: QuantizeWeights(bits, symmetric=False)",
            )
        if self.activation.granularity is not Granularity.PER_TENSOR:
            raise DescriptionError(
                "activations are quantized per tensor",
                expected="activation=QuantType(bits)",
                found=str(self.activation),
                hint="for a scale a token: QuantizeDynamic(per_token=True)",
            )

    def __str__(self) -> str:
        return f"activations {self.activation}, weights {self.weight}"


INT8 = Scheme()
"""8-bit asymmetric activations, 8-bit symmetric per-channel weights: what CPUs run best."""

INT8_SYMMETRIC = Scheme(activation=QuantType(8, symmetric=True))
"""8 bits with zero point 0 everywhere: what TensorRT takes."""

INT8_PER_TENSOR = Scheme(weight=QuantType(8, symmetric=True))
"""8 bits with one scale a weight tensor."""

W4A8 = Scheme(weight=QuantType(4, symmetric=True, granularity=Granularity.PER_CHANNEL))
"""4-bit per-channel weights, 8-bit activations."""

INT4 = Scheme(
    activation=QuantType(4, symmetric=False),
    weight=QuantType(4, symmetric=True, granularity=Granularity.PER_CHANNEL),
)
"""4 bits for both."""

SCHEMES: dict[str, Scheme] = {
    "int8": INT8,
    "int8_symmetric": INT8_SYMMETRIC,
    "int8_per_tensor": INT8_PER_TENSOR,
    "w4a8": W4A8,
    "int4": INT4,
}
"""The schemes that recipes name."""
