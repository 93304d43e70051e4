"""Checkpoints of a pipeline: the program after each pass, so that a stopped run goes on where it was."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from tersor.ir.errors import ArchiveError
from tersor.ir.program import Program

from .base import Pass
from .report import ReportRow

_STATE = "pipeline.json"


class Checkpoints:
    """A folder with one program a finished pass, and a list of what was done.

    A checkpoint is used again where the program given and all passes up to it, with their options, are the same.
    Data (calibration batches) cannot be compared and is taken to be the same: use another folder for other data.
    """

    def __init__(self, folder: Path, program: Program, passes: Sequence[Pass]) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self._prints = _fingerprints(folder, program, passes)

    def resume(self, program: Program) -> tuple[Program, list[ReportRow]]:
        """The program after the last pass that is done already, and the rows up to it; else the program given."""
        done = self._done()
        rows = [ReportRow.from_json(entry["row"]) for entry in done]
        for count in range(len(done), 0, -1):
            try:
                loaded = Program.load(self.folder / done[count - 1]["file"])
            except ArchiveError:
                continue
            outputs = program.signature.outputs
            same = loaded.signature.outputs == outputs
            loaded.signature = dataclasses.replace(loaded.signature, outputs=outputs) if same else loaded.signature
            loaded.example = program.example
            return loaded, rows[:count]
        return program, []

    def save(self, index: int, name: str, program: Program, rows: Sequence[ReportRow]) -> None:
        """Write the program after pass `index`, then the list that names it."""
        file = f"{index + 1:02d}-{name}.tersor"
        program.save(self.folder / file)
        done = self._done()[:index]
        done.append({"print": self._prints[index], "file": file, "row": rows[-1].to_json()})
        write_json(self.folder / _STATE, done)

    def _done(self) -> list[dict[str, object] | dict[str, str]] | list[dict]:  # type: ignore[type-arg]
        try:
            entries = json.loads((self.folder / _STATE).read_text())
        except (OSError, ValueError):
            return []
        matching = []
        for entry, fingerprint in zip(entries, self._prints, strict=False):
            if entry.get("print") != fingerprint:
                break
            matching.append(entry)
        return matching


def _fingerprints(folder: Path, program: Program, passes: Sequence[Pass]) -> list[str]:
    """A digest for each pass that covers the program given and every pass up to it."""
    given = program.save(folder / "00-given.tersor")
    digest = hashlib.sha256(given.read_bytes())
    prints = []
    for step in passes:
        digest.update(json.dumps([type(step).__module__, step.name, step.options()]).encode())
        prints.append(digest.hexdigest())
    return prints


def write_json(path: Path, data: object) -> None:
    """Write a JSON file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(data, indent=1))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
