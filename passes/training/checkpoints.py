"""Checkpoints of a run: one file each, whole or not there, without pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tersor.ir.errors import TrainingError

_KEPT = 2


@dataclass
class Snapshot:
    """A run at a step: tensors under dotted names, and everything else as plain data."""

    step: int
    tensors: dict[str, Tensor] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    def put(self, prefix: str, tensors: Mapping[str, Tensor]) -> None:
        """Add tensors under a prefix."""
        self.tensors |= {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}

    def get(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under a prefix."""
        start = f"{prefix}/"
        return {name[len(start) :]: tensor for name, tensor in self.tensors.items() if name.startswith(start)}


class Checkpoints:
    """The last two snapshots of a run in a folder.

    A file is written under another name, flushed to the disk and renamed, so that a process that is killed leaves
    whole files only. A file that does not open is passed over for the one before it.

    Raises TrainingError where the folder cannot be made or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob(".step-*.tmp"):
                left.unlink()
        except OSError as error:
            raise TrainingError(f"{folder} cannot hold checkpoints: {error.strerror}", hint="name a folder") from error

    def stem(self, step: int) -> Path:
        """The path of a step's files, without a suffix."""
        return self.folder / f"step-{step:09d}"

    def save(self, snapshot: Snapshot) -> None:
        """Write a snapshot, then delete those that are no longer kept."""
        target = self.stem(snapshot.step).with_suffix(".safetensors")
        temporary = self.folder / f".step-{snapshot.step:09d}.{os.getpid()}.tmp"
        plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in snapshot.tensors.items()}
        header = {"step": str(snapshot.step), "data": json.dumps(snapshot.data)}
        try:
            save_file(plain, temporary, header)
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(target)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise TrainingError(f"a checkpoint cannot be written to {self.folder}: {reason}") from error
        finally:
            temporary.unlink(missing_ok=True)
        for old in self._steps()[:-_KEPT]:
            for file in self.folder.glob(f"{self.stem(old).name}.*"):
                file.unlink(missing_ok=True)

    def last(self, at_most: int | None = None) -> Snapshot | None:
        """The newest snapshot that opens, of a step of `at_most` where that is given; None where there is none."""
        for step in reversed([step for step in self._steps() if at_most is None or step <= at_most]):
            try:
                with safe_open(self.stem(step).with_suffix(".safetensors"), "pt") as file:
                    header = file.metadata()
                    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
                return Snapshot(int(header["step"]), tensors, json.loads(header["data"]))
            except (OSError, SafetensorError, ValueError, KeyError, TypeError):
                continue
        return None

    def _steps(self) -> list[int]:
        return sorted(int(path.stem.removeprefix("step-")) for path in self.folder.glob("step-*.safetensors"))
