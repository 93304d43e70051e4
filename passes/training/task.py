"""What a loop trains: parameters, a loss, and what has to hold after each step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tersor.ir.errors import TrainingError


@dataclass(frozen=True)
class Group:
    """Parameters by name that share their settings.

    speed: their learning rate as a multiple of the run's; decay: whether weight decay applies.
    """

    parameters: Mapping[str, nn.Parameter]
    speed: float = 1.0
    decay: bool = True


class Task(ABC):
    """What is trained, apart from how. The loop owns the optimizer, the data and the clock."""

    what = "train"
    """What a progress bar says."""

    stays_on: torch.device | None = None
    """Where it trains, where it cannot be moved; None leaves that to the loop, which takes a GPU where there is one."""

    @abstractmethod
    def groups(self) -> list[Group]:
        """The parameters, each once. Asked again after `advance` said that they are others."""

    @abstractmethod
    def loss(self, batch: Any, share: float) -> Tensor:
        """The mean loss of a batch, float[]; share: how much of the run is done, from 0 to 1."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Every tensor that training changes, by name: the parameters, and statistics that move along."""

    def begin(self, steps: int) -> None:  # noqa: B027  # optional
        """Called once, before anything is trained, with the number of steps: the place to refuse."""

    def advance(self, step: int, steps: int) -> bool:
        """Called before each step. True where the parameters are others from now on."""
        return False

    def constrain(self) -> None:  # noqa: B027  # optional
        """Called after each update, without gradients: put back what has to hold, such as zeros."""

    def evaluate(self) -> float | None:
        """The metric on validation data, for the state as it is; None where there is none."""
        return None

    def explain(self, batch: Any, share: float) -> TrainingError | None:
        """The first tensor that is not finite, as an error; called once the loss is not finite."""
        return None

    def body(self) -> nn.Module:
        """The module whose parameters the loss reads, for a sharded run."""
        return nn.Module()

    def whole_tensors(self) -> str | None:
        """What of this task needs whole tensors at every step, if anything does: it cannot be sharded then."""
        return "this task"

    def save_structure(self, stem: Path) -> None:  # noqa: B027  # optional
        """Write what is not a tensor and changes in the run, such as a pruned graph, beside a checkpoint.

        stem: the path of the checkpoint, without a suffix.
        """

    def load_structure(self, stem: Path, step: int, steps: int) -> None:  # noqa: B027  # optional
        """The inverse of `save_structure`, for a run that goes on at `step` of `steps`."""

    def to(self, device: torch.device) -> None:  # noqa: B027  # optional
        """Move everything to a device."""
