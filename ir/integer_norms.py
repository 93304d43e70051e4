"""Softmax and normalization in integers: one division a row, one product a value, no float.

No standard defines these operators on integers, so this does. All sums and products are exact in int64, a division
rounds down, and a shift rounds half up. The errors named here hold for any input and are tested.

int_softmax    per row, with k = max(q) - q:
               t = exponentials[k], S = sum(t)                     exponentials[k] = round(2**20 * exp(-k * scale))
               r = floor(numerator / S)                            numerator = round(2**46 / output scale)
               q' = clamp(((t * r + 2**45) >> 46) + zero_point)
               of the values that are not hidden; the others have t = 0, and a row that hides all of them is all 0
               within 0.5 + n * 2**-21 / scale' + 2**-24 steps of the real softmax of n values, scale' the output's

int_normalize  per row of n values, with d = q - zero_point:
               a = n * d - sum(d), v = n * sum(d * d) - sum(d)**2  (layer norm; RMS norm leaves out the sums of d)
               R = max(1, isqrt((v << 2 * b) + epsilon))           epsilon = round(eps * n**2 / scale**2 * 2**(2 * b))
               t = (a * floor(2**48 / R) + 2**(35 - b)) >> 36 - b  the normalized value with 12 fractional bits
               acc = t * weight + bias in int32                    b = 8, and one less for each doubling of n over 2**14
               t within 0.5 + |t| * 2**-8 of 2**12 times the real normalized value. The first term is the last shift,
               the second the root's b fractional bits, of weight in rows that hardly vary. A row that varies at all
               has v >= n - 1, so that long ones need fewer bits
               group norm is this over rows of a group's channels, instance norm over those of one channel
"""

from __future__ import annotations

import torch
from torch import Tensor

from .integer_operators import register

EXPONENTIAL_BITS = 20
SOFTMAX_SHIFT = 46
NORMALIZED_BITS = 12
LARGEST_NUMERATOR = 1 << 62
LARGEST_EPSILON = 1 << 61
LONGEST_ROW = 1 << 18
"""Up to these, no step leaves int64: (n * 255)**2 with its 2 * root_bits more bits stays below 2**60."""
_RECIPROCAL_SHIFT = 48


def exponential_table(scale: float) -> Tensor:
    """exp(-k * scale) for k = 0..255 with 20 fractional bits, int32[256]."""
    steps = torch.arange(256, dtype=torch.float64) * -scale
    return torch.round(torch.exp(steps) * (1 << EXPONENTIAL_BITS)).to(torch.int32)


def softmax_numerator(scale: float) -> int:
    """What `int_softmax` divides by a row's sum, for an output of that scale."""
    return round(2.0**SOFTMAX_SHIFT / scale)


def int_softmax(
    x: Tensor,
    exponentials: Tensor,
    dim: int,
    numerator: int,
    zero_point: int,
    quant_min: int,
    quant_max: int,
    hidden: Tensor | None = None,
) -> Tensor:
    """int8 to int8, softmax over `dim`. hidden: bool, broadcasts over x; True leaves a value out."""
    values = x.to(torch.int64)
    seen = values if hidden is None else values.masked_fill(hidden, torch.iinfo(torch.int8).min)
    terms = exponentials.to(torch.int64)[seen.amax(dim, keepdim=True) - seen]
    terms = terms if hidden is None else terms.masked_fill(hidden, 0)
    reciprocal = torch.div(numerator, terms.sum(dim, keepdim=True).clamp(min=1), rounding_mode="floor")
    steps = (terms * reciprocal + (1 << (SOFTMAX_SHIFT - 1))) >> SOFTMAX_SHIFT
    return (steps + zero_point).clamp(quant_min, quant_max).to(torch.int8)


def int_normalize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, zero_point: int, rank: int, epsilon: int, center: bool
) -> Tensor:
    """int8[..., *shape] to int32 accumulators, normalized over the last `rank` dimensions.

    weight, bias: int32, broadcast over x from the right. The scale of the accumulators is that of the weight times
    2**-12.
    """
    dims = list(range(-rank, 0))
    values = x.to(torch.int64) - zero_point
    count = 1
    for dim in dims:
        count = count * x.shape[dim]
    total = values.sum(dims, keepdim=True) if center else 0
    spread = count * (values * values).sum(dims, keepdim=True) - total * total
    bits = root_bits(int(count))
    root = integer_root((spread << (2 * bits)) + epsilon).clamp_(min=1)
    reciprocal = torch.div(1 << _RECIPROCAL_SHIFT, root, rounding_mode="floor")
    shift = _RECIPROCAL_SHIFT - bits - NORMALIZED_BITS
    normalized = ((count * values - total) * reciprocal + (1 << (shift - 1))) >> shift
    scaled = normalized if weight is None else normalized * weight
    return (scaled if bias is None else scaled + bias).to(torch.int32)


def normalization_epsilon(eps: float, count: int, scale: float) -> int:
    """What `int_normalize` adds under the root of rows of so many values on a grid of that scale."""
    return round(eps * count**2 / scale**2 * (1 << 2 * root_bits(count)))


def root_bits(count: int) -> int:
    """Fractional bits of the root of a row of so many values."""
    return 8 - max(0, (count - 1).bit_length() - 14)


def integer_root(values: Tensor) -> Tensor:
    """The integer part of the square root of int64 values up to 2**62, exact."""
    root = torch.sqrt(values.to(torch.float64)).to(torch.int64)
    root = torch.where(root * root > values, root - 1, root)
    return torch.where((root + 1) * (root + 1) <= values, root + 1, root)


register(
    {
        "int_softmax": (
            "(Tensor x, Tensor exponentials, int dim, int numerator, int zero_point, int quant_min, int quant_max, "
            "Tensor? hidden=None) -> Tensor",
            int_softmax,
            lambda x, *_: torch.empty_like(x),
        ),
        "int_normalize": (
            "(Tensor x, Tensor? weight, Tensor? bias, int zero_point, int rank, int epsilon, bool center) -> Tensor",
            int_normalize,
            lambda x, *_: torch.empty_like(x, dtype=torch.int32),
        ),
    }
)

INT_SOFTMAX = torch.ops.tersor.int_softmax.default
INT_NORMALIZE = torch.ops.tersor.int_normalize.default
