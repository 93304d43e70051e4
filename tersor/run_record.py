"""What a compression run did, as a file: `run.json` in the run's folder, which `tersor report` makes a page of.

The file is written whole or not at all, holds no pickle, and says which form it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tersor.backends.clock import Clock
from tersor.ir.errors import ArchiveError
from tersor.passes.training.options import Better

from .typed_json import decode, encode, read, write

NAME = "run.json"
_FORM = "tersor_run"
_VERSION = 1


@dataclass(frozen=True)
class Timing:
    """A latency in seconds, how it was found, and where, as `onnxruntime, 1 thread`."""

    seconds: float
    clock: Clock = Clock.MEASURED
    where: str = ""


@dataclass(frozen=True)
class Metric:
    """What accuracy is judged by: its name, and whether it is to grow. floor: what a budget asked for."""

    name: str
    better: Better = Better.HIGHER
    floor: float | None = None


@dataclass(frozen=True)
class Step:
    """A pass as it ran, and the program after it; the first step is the program as it was given.

    promise: exact, approximate or trained; blank for the program given. bytes: of parameters, in storage.
    sqnr: dB against the outputs before the step; sqnr_total: against the program given. metric: on held-out data.
    seconds: what the step took. None where something was not measured.
    """

    name: str
    promise: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    modified: bool = True
    nodes: int = 0
    parameters: int = 0
    bytes: int = 0
    macs: int = 0
    sqnr: float | None = None
    sqnr_total: float | None = None
    metric: float | None = None
    latency: Timing | None = None
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layer:
    """A node of the result that computes with parameters or multiplies.

    bytes: of its parameters, in storage; bytes_before, macs_before: of the node of its name in the program given.
    error: SQNR in dB of its value, the error of the layers before it included; None where it was not compared.
    density: share of its weight that is not zero; pattern: the promise kept about the zeros, blank where there is none.
    precision: the grids that it reads, as `a8 w8`; runs_in, reason: what the target runs it in, and why if in float.
    """

    name: str
    operator: str
    module: str = ""
    bytes: int = 0
    macs: int = 0
    bytes_before: int | None = None
    macs_before: int | None = None
    error: float | None = None
    density: float | None = None
    pattern: str = ""
    precision: str = ""
    runs_in: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Point:
    """Something that was tried: a plan, a setting. costs: by name, as `latency_ms`, `bytes`, `macs`, `parameters`.

    chosen: it is what the run gave. reason: why it was chosen or left. error: it failed, and why.
    clock: how a latency among the costs was found.
    """

    name: str
    costs: Mapping[str, float] = field(default_factory=dict)
    metric: float | None = None
    chosen: bool = False
    reason: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    error: str = ""
    clock: Clock = Clock.MEASURED


@dataclass(frozen=True)
class RunRecord:
    """One compression run.

    started: ISO 8601, UTC. seconds: the whole of it. versions, machine, settings: what it ran with, in words.
    error_of: what a layer's error is measured against, in words. before, after: the program's text, given and
    compressed. recipe: YAML that replays the run, blank where it cannot be written. files: bytes by name.
    """

    name: str
    target: str = ""
    started: str = ""
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    metric: Metric | None = None
    steps: tuple[Step, ...] = ()
    layers: tuple[Layer, ...] = ()
    error_of: str = ""
    points: tuple[Point, ...] = ()
    integer_share: float | None = None
    files: Mapping[str, int] = field(default_factory=dict)
    before: str = ""
    after: str = ""
    recipe: str = ""
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data, with the version of its form first."""
        return {_FORM: _VERSION, **encode(self)}

    def save(self, folder: str | Path) -> Path:
        """Write `run.json` into a folder, which is made. Raises OSError where that cannot be done."""
        path = Path(folder) / NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, self.to_json())
        return path

    @classmethod
    def load(cls, where: str | Path) -> RunRecord:
        """Read the `run.json` of a folder, or the file itself. Raises ArchiveError where it is none."""
        path = Path(where) / NAME if Path(where).is_dir() else Path(where)
        if not path.exists():
            raise ArchiveError(
                f"{where} holds no {NAME}" if path.name == NAME else f"there is no {path}",
                expected="the folder of a compression run",
                hint="run `tersor compress MODEL --out FOLDER` first",
            )
        data = read(path)
        if not isinstance(data, dict) or type(data.get(_FORM)) is not int:
            raise ArchiveError(f"{path} is not the record of a run", expected=f"an object with {_FORM!r}")
        version = data.pop(_FORM)
        if version != _VERSION:
            raise ArchiveError(f"{path} has another form", expected=f"{_FORM} {_VERSION}", found=version)
        return decode(data, cls, str(path))
