"""Batches in groups of one step each, epoch after epoch, from any point on."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tersor.ir.errors import TrainingError

from .batches import digest, length, require_again
from .randomness import Stream

_END = object()


@dataclass(frozen=True)
class Group:
    """The batches of one step; `ends`: they are the last of their epoch."""

    batches: list[Any]
    ends: bool


class Feed:
    """Reads an iterable again and again, `size` batches a step; the last step of an epoch may have fewer.

    Random numbers that the iterable draws come from `stream`. A feed that goes on in the middle of an epoch reads the
    epoch from its beginning, with the random numbers that it had then, up to where it was.

    Raises TrainingError where the iterable can be read once only, is empty, or gives other batches the second time.
    """

    def __init__(self, batches: Iterable[Any], size: int, stream: Stream) -> None:
        require_again(batches)
        self.batches, self.size = batches, size
        self.epoch = self.taken = 0
        self._start = copy.deepcopy(stream)
        self._stream = stream
        self._iterator: Iterator[Any] | None = None
        self._ahead: Any = _END
        self._last: Any = None

    def steps_per_epoch(self) -> int:
        """How many steps an epoch has. Where the iterable does not say its length, it is read once to count."""
        count = length(self.batches)
        if count is None:
            with copy.deepcopy(self._stream).used():
                count = sum(1 for _ in self.batches)
        if not count:
            raise TrainingError("training data is empty", expected="at least one batch", found="none")
        return -(-count // self.size)

    def next(self) -> Group:
        """The batches of the next step."""
        if self._iterator is None:
            self._begin()
        group: list[Any] = []
        while len(group) < self.size and self._ahead is not _END:
            group.append(self._ahead)
            self._pull()
        self.taken += len(group)
        self._last = group[-1]
        ends = self._ahead is _END
        if ends:
            self.epoch, self.taken, self._iterator = self.epoch + 1, 0, None
            self._start = copy.deepcopy(self._stream)
        return Group(group, ends)

    def to_data(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Where it is, for a checkpoint."""
        tensors, stream = self._start.to_data()
        return tensors, {"epoch": self.epoch, "taken": self.taken, "digest": digest(self._last), "stream": stream}

    def go_on(self, tensors: dict[str, Tensor], data: dict[str, Any]) -> None:
        """Go to where `to_data` was called."""
        self._start = Stream.from_data(tensors, data["stream"])
        self._stream = copy.deepcopy(self._start)
        self.epoch, taken = data["epoch"], data["taken"]
        if not taken:
            return
        self._begin()
        for _ in range(taken):
            self._last = self._ahead
            self._pull()
        if self._last is _END or digest(self._last) != data["digest"]:
            raise TrainingError(
                "the training data is not what the run that was stopped read",
                expected="the same batches in the same order",
                found=f"another batch {taken - 1} in epoch {self.epoch}",
                hint="name another checkpoint folder; a generator of one's own has to be seeded in __iter__",
            )
        self.taken = taken

    def _begin(self) -> None:
        with self._stream.used():
            self._iterator = iter(self.batches)
        self._pull()
        if self._ahead is _END:
            raise TrainingError("training data is empty", expected="at least one batch", found="none")

    def _pull(self) -> None:
        assert self._iterator is not None
        with self._stream.used():
            self._ahead = next(self._iterator, _END)
