"""Checkpoints of a pipeline: the program after each pass, so that a stopped run goes on where it was."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from torch import Tensor

from tersor.ir.errors import ArchiveError, PassError
from tersor.ir.program import Program

from .base import Pass
from .report import ReportRow

_STATE = "pipeline.json"


def checkpoint_folder(folder: Path) -> Path:
    """The folder, made where it is not there. Raises PassError where it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PassError(f"{folder} cannot hold checkpoints: {error.strerror}", hint="name a folder") from error
    return folder


class Checkpoints:
    """A folder with one program a finished pass, and a list of what was done.

    A checkpoint is used again where the program given and all passes up to it, with their options, are the same.
    Data (calibration batches) cannot be compared and is taken to be the same: use another folder for other data.
    A file that is damaged, or not the one that was written, is not used; the pass runs again.

    Raises PassError where the folder cannot be made.
    """

    def __init__(self, folder: Path, program: Program, passes: Sequence[Pass]) -> None:
        self.folder = checkpoint_folder(folder)
        self._prints = _fingerprints(folder, program, passes)

    def resume(self, program: Program) -> tuple[Program, list[ReportRow]]:
        """The program after the last pass that is done already, and the rows up to it; else the program given."""
        done = self._done()
        for count in range(len(done), 0, -1):
            file = self.folder / done[count - 1].file
            try:
                if _digest(file) != done[count - 1].sha256:
                    continue
                loaded = Program.load(file)
            except (ArchiveError, OSError):
                continue
            return _as_given(loaded, program), [entry.row for entry in done[:count]]
        return program, []

    def save(self, index: int, name: str, program: Program, row: ReportRow) -> None:
        """Write the program after pass `index`, then the list that names it."""
        file = f"{index + 1:02d}-{name}.tersor"
        program.save(self.folder / file)
        done = [*self._done()[:index], _Entry(self._prints[index], file, _digest(self.folder / file), row)]
        write_json(self.folder / _STATE, [{**vars(entry), "row": entry.row.to_json()} for entry in done])

    def _done(self) -> list[_Entry]:
        try:
            data = json.loads((self.folder / _STATE).read_text(encoding="utf-8"))
            entries = [_Entry(**{**entry, "row": ReportRow.from_json(entry["row"])}) for entry in data]
        except (OSError, ValueError, TypeError, KeyError):
            return []
        matching = zip(entries, self._prints, strict=False)
        return [entry for entry, _ in takewhile(lambda pair: pair[0].fingerprint == pair[1], matching)]


@dataclass(frozen=True)
class _Entry:
    fingerprint: str
    file: str
    sha256: str
    row: ReportRow


def _as_given(loaded: Program, given: Program) -> Program:
    """A loaded program with what a file does not hold: the classes that outputs are nested in, and the example."""
    if loaded.signature.outputs == given.signature.outputs:
        loaded.signature = dataclasses.replace(loaded.signature, outputs=given.signature.outputs)
    loaded.example = given.example
    return loaded


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _fingerprints(folder: Path, program: Program, passes: Sequence[Pass]) -> list[str]:
    """A digest for each pass that covers the program given and every pass up to it."""
    given = program.save(folder / "00-given.tersor")
    digest = hashlib.sha256(given.read_bytes())
    prints = []
    for step in passes:
        digest.update(repr(plain(step)).encode())
        prints.append(digest.hexdigest())
    return prints


def plain(value: object) -> object:
    """An option as data whose text is the same in every process; what cannot be compared goes by its type."""
    if value is None or isinstance(value, bool | int | float | str | bytes | enum.Enum):
        return value
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, Tensor):
        return kind, str(value.dtype), value.tolist()
    if isinstance(value, set | frozenset):
        return kind, sorted(repr(plain(item)) for item in value)
    if isinstance(value, Mapping):
        return kind, [(plain(key), plain(item)) for key, item in value.items()]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return kind, [(field.name, plain(getattr(value, field.name))) for field in dataclasses.fields(value)]
    if isinstance(value, list | tuple):
        return kind, [plain(item) for item in value]
    return kind, getattr(value, "__qualname__", "")


def write_json(path: Path, data: object) -> None:
    """Write a JSON file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(data, indent=1))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
