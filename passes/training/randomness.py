"""Random numbers in two streams, so that a run can stop anywhere and go on to the same bits.

The order of the batches and what happens to them (dropout) draw from generators of the process. If both drew from the
same, reading the batches again up to where a run stopped would move what dropout draws next. So each has a stream of
its own, which is put into the generators while it is used, and taken out again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass
class Stream:
    """The state of the generators of torch, numpy and Python, of one use of them."""

    torch_state: Tensor
    numpy_state: Any
    python_state: Any
    device_states: tuple[Tensor, ...] = ()

    @classmethod
    def now(cls) -> Stream:
        """What the generators of the process hold."""
        devices = tuple(torch.cuda.get_rng_state_all()) if torch.cuda.is_initialized() else ()
        return cls(torch.get_rng_state(), np.random.get_state(), random.getstate(), devices)

    @classmethod
    def seeded(cls, seed: int) -> Stream:
        """The generators right after seeding, which does not move them for others."""
        with preserved():
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
            return cls.now()

    def put(self) -> None:
        """Put this state into the generators."""
        torch.set_rng_state(self.torch_state)
        np.random.set_state(self.numpy_state)
        random.setstate(self.python_state)
        if self.device_states:
            torch.cuda.set_rng_state_all(list(self.device_states))

    @contextmanager
    def used(self) -> Iterator[None]:
        """Let the block draw from this stream, which moves on; the generators of the process stay as they are."""
        with preserved():
            self.put()
            try:
                yield
            finally:
                vars(self).update(vars(Stream.now()))

    def to_data(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """As tensors and plain data, for a file."""
        kind, keys, *rest = self.numpy_state
        tensors = {"torch": self.torch_state, "numpy": torch.from_numpy(keys.astype(np.int64))}
        tensors |= {f"device.{index}": state for index, state in enumerate(self.device_states)}
        return tensors, {"numpy": [kind, *rest], "python": self.python_state}

    @classmethod
    def from_data(cls, tensors: dict[str, Tensor], data: dict[str, Any]) -> Stream:
        """The inverse of `to_data`."""
        kind, *rest = data["numpy"]
        version, numbers, gauss = data["python"]
        numpy_state = (kind, tensors["numpy"].numpy().astype(np.uint32), *rest)
        count = sum(name.startswith("device.") for name in tensors)
        devices = tuple(tensors[f"device.{index}"] for index in range(count))
        return cls(tensors["torch"], numpy_state, (version, tuple(numbers), gauss), devices)


@contextmanager
def preserved() -> Iterator[None]:
    """Leave the generators of the process as they were before the block."""
    before = Stream.now()
    try:
        yield
    finally:
        before.put()
