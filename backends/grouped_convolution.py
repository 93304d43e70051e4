"""A grouped convolution for targets that compute in one group and skip zeros."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", bound=np.generic)


def ungrouped(weight: NDArray[Number], groups: int) -> NDArray[Number]:
    """Weights [out, in / groups, *kernel] as [out, in, *kernel], with zeros between the groups."""
    if groups == 1:
        return weight
    outputs, inputs = len(weight) // groups, weight.shape[1]
    full = np.zeros((len(weight), inputs * groups, *weight.shape[2:]), weight.dtype)
    for group in range(groups):
        rows = slice(group * outputs, (group + 1) * outputs)
        full[rows, group * inputs : (group + 1) * inputs] = weight[rows]
    return full
