"""What came of one try, and the folder that a sweep keeps them in."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tersor.backends.clock import Clock
from tersor.ir.errors import ArchiveError, RecipeError

from ..run_record import Metric, Point
from ..typed_json import decode, encode, read, write

DEFINITION, GIVEN, POINTS, _LOCK = "sweep.json", "given.tersor", "points", ".lock"
_FORM = "tersor_sweep"
_VERSION = 1


@dataclass(frozen=True)
class Outcome:
    """One try. costs: `parameters`, `bytes`, `macs`, `activation_bytes`, `file_bytes`, `latency_ms`, where known.

    metric: NaN where the metric gave that. sqnr: dB of the outputs against the program given. clock: what `latency_ms`
    is worth. error: why it failed, blank where it did not. seconds: what the try took.
    """

    key: str
    name: str
    options: Mapping[str, str] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)
    metric: float | None = None
    sqnr: float | None = None
    clock: Clock = Clock.MEASURED
    error: str = ""
    seconds: float = 0.0

    def point(self, chosen: bool, reason: str) -> Point:
        """The same as a point of a run's record."""
        return Point(self.name, self.costs, self.metric, chosen, reason, self.options, self.error, self.clock)


@dataclass(frozen=True)
class Planned:
    """A try as the sweep's definition lists it."""

    key: str
    name: str
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Definition:
    """What a sweep consists of. costs: what the front is judged by, besides the metric or SQNR."""

    name: str
    points: tuple[Planned, ...]
    costs: tuple[str, ...]
    metric: Metric | None = None
    target: str = ""
    started: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)


class Folder:
    """A sweep's folder: its definition, the program given, and a file for each try that is finished."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other sweeps out, until the process ends, however it ends. Raises RecipeError where one runs."""
        import fcntl  # of POSIX alone, and tersor is imported elsewhere too

        (self.path / POINTS).mkdir(parents=True, exist_ok=True)
        with (self.path / _LOCK).open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise RecipeError(
                    f"another sweep runs in {self.path}",
                    found=f"process {file.read().strip()}",
                    hint="name another folder",
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def point(self, key: str) -> Path:
        """The folder of one try: its record, and what was kept of it."""
        return self.path / POINTS / key

    def define(self, definition: Definition) -> None:
        """Write the definition. Raises OSError."""
        write(self.path / DEFINITION, {_FORM: _VERSION, **encode(definition)})

    def definition(self) -> Definition:
        """Read it. Raises ArchiveError where there is none, or it is malformed."""
        path = self.path / DEFINITION
        if not path.exists():
            raise ArchiveError(f"{self.path} holds no {DEFINITION}", expected="the folder of a sweep")
        data = read(path)
        if not isinstance(data, dict) or data.pop(_FORM, None) != _VERSION:
            raise ArchiveError(f"{path} is not the definition of a sweep", expected=f"{_FORM} {_VERSION}")
        return decode(data, Definition, str(path))

    def write(self, outcome: Outcome) -> None:
        """Keep what came of a try, whole or not at all. Raises OSError."""
        write(self._file(outcome.key), encode(outcome))

    def outcome(self, key: str) -> Outcome | None:
        """What came of a try; None where it is not finished, or its file is damaged: then it runs again."""
        try:
            found = decode(read(self._file(key)), Outcome, key)
        except ArchiveError:
            return None
        return found if found.key == key else None

    def _file(self, key: str) -> Path:
        return self.path / POINTS / f"{key}.json"


def is_sweep(path: Path) -> bool:
    """Whether a folder holds a sweep."""
    return (path / DEFINITION).is_file()


def plain_error(error: BaseException) -> str:
    """An error as one line of a table."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    return "; ".join(lines) or type(error).__name__
