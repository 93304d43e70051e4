"""A run that is stopped anywhere goes on from its last checkpoint, to the same bits."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tersor.ir.errors import TrainingError

from ..processes import least, rank, world
from .averaging import write
from .batches import digest
from .checkpoints import Checkpoints, Snapshot
from .randomness import Stream

if TYPE_CHECKING:
    from .loop import Loop

_COUNTERS = (
    "step",
    "best",
    "best_step",
    "without_better",
    "metric",
    "losses",
    "mean_loss",
    "stopped_early",
    "speeds",
)
_MAY_DIFFER = ("checkpoint", "checkpoint_every", "progress")


class Keeper:
    """Writes a run's state and restores it.

    Each process keeps its own, so that hosts need no common disk; they go on from the newest step that all have.

    Raises TrainingError where the folder holds another run: other options, another program, other processes.
    """

    def __init__(self, loop: Loop) -> None:
        assert loop.options.checkpoint is not None
        folder = Path(loop.options.checkpoint)
        self.loop = loop
        self.checkpoints = Checkpoints(folder / f"process-{rank()}" if rank() else folder)
        self.identity = _identity(loop)

    def save(self) -> None:
        """Write where the run is."""
        loop = self.loop
        loop.task.save_structure(self.checkpoints.stem(loop.step))
        snapshot = Snapshot(loop.step)
        snapshot.put("state", loop.task.state())
        if loop.average is not None:
            snapshot.put("average", loop.average.values)
        if loop.best_state is not None:
            snapshot.put("best", loop.best_state)
        feed_tensors, feed = loop.feed.to_data()
        compute_tensors, compute = Stream.now().to_data()
        snapshot.put("feed", feed_tensors)
        snapshot.put("compute", compute_tensors)
        snapshot.data = {
            "identity": self.identity,
            "counters": {name: getattr(loop, name) for name in _COUNTERS},
            "feed": feed,
            "compute": compute,
            "optimizer": self._optimizer(snapshot),
            "scaler": loop.accelerator.scaler.state_dict() if loop.accelerator.scaler is not None else None,
        }
        self.checkpoints.save(snapshot)

    def resume(self) -> int:
        """Go to the newest checkpoint; returns its step, 0 where there is none."""
        snapshot = self._newest()
        if snapshot is None:
            return 0
        self._refuse_another(snapshot)
        loop, data = self.loop, snapshot.data
        loop.task.load_structure(self.checkpoints.stem(snapshot.step), snapshot.step, loop.steps)
        loop.build()
        device = loop.accelerator.device
        write(loop.task.state(), snapshot.get("state"))
        if loop.average is not None:
            loop.average.values = {name: value.to(device) for name, value in snapshot.get("average").items()}
        loop.best_state = {name: value.to(device) for name, value in snapshot.get("best").items()} or None
        for name, value in data["counters"].items():
            setattr(loop, name, value)
        loop.load_optimizer_states(self._optimizer_states(snapshot))
        if data["scaler"] is not None and loop.accelerator.scaler is not None:
            loop.accelerator.scaler.load_state_dict(data["scaler"])
        loop.feed.go_on(snapshot.get("feed"), data["feed"])
        Stream.from_data(snapshot.get("compute"), data["compute"]).put()
        return snapshot.step

    def _newest(self) -> Snapshot | None:
        snapshot = self.checkpoints.last()
        if world() == 1:
            return snapshot
        step = int(least(torch.tensor(0 if snapshot is None else snapshot.step)))
        return self.checkpoints.last(step) if step else None

    def _refuse_another(self, snapshot: Snapshot) -> None:
        found = snapshot.data["identity"]
        for key, value in self.identity.items():
            if found.get(key) != value:
                raise TrainingError(
                    f"{self.checkpoints.folder} holds the checkpoints of another run: {key}",
                    expected=value,
                    found=found.get(key),
                    hint="name another folder, or delete this one",
                )

    def _optimizer(self, snapshot: Snapshot) -> dict[str, Any]:
        """Put the optimizer's tensors into the snapshot; returns its plain numbers."""
        plain: dict[str, dict[str, Any]] = {}
        for name, state in self.loop.optimizer_states().items():
            tensors = {f"{name}/{key}": value for key, value in state.items() if isinstance(value, Tensor)}
            snapshot.put("optimizer", tensors)
            plain[name] = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
        return plain

    def _optimizer_states(self, snapshot: Snapshot) -> dict[str, dict[str, Any]]:
        states: dict[str, dict[str, Any]] = {name: dict(plain) for name, plain in snapshot.data["optimizer"].items()}
        for path, value in snapshot.get("optimizer").items():
            name, _, key = path.rpartition("/")
            # Counters that are tensors stay on the CPU, where torch's optimizers have them.
            states[name][key] = value.to(self.loop.accelerator.device) if value.dim() else value
        return states


def _identity(loop: Loop) -> dict[str, str]:
    """What has to be the same for a run to be the same run."""
    kept = [field.name for field in dataclasses.fields(loop.options) if field.name not in _MAY_DIFFER]
    identity = {name: _text(getattr(loop.options, name)) for name in kept}
    state = loop.task.state()
    identity["the steps in all"] = str(loop.steps)
    identity["the processes"] = str(world())
    identity["the tensors that it began with"] = f"{len(state)}, checksum {digest(list(state.values())):08x}"
    return identity


def _text(value: object) -> str:
    return getattr(value, "__qualname__", None) or str(value)
