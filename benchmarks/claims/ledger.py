"""Results of claims on disk: each is written when it is measured, and a run that was stopped goes on where it was.

results/claims.json holds an entry a claim. While a run is under way, `.claims-running.json` beside it names the claims
that were asked for and those that are done; the end of the run removes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Entry = Mapping[str, Any]


class LedgerError(ValueError):
    """A file of results is not one."""


@dataclass(frozen=True)
class Ledger:
    """The files in `folder`."""

    folder: Path

    @property
    def results(self) -> Path:
        return self.folder / "claims.json"

    @property
    def running(self) -> Path:
        return self.folder / ".claims-running.json"

    def entries(self) -> dict[int, Entry]:
        """The entries by claim, in order; none where there is no file. Raises LedgerError on another kind of file."""
        data = _read(self.results)
        found = data.get("claims", []) if isinstance(data, dict) else None
        if not isinstance(found, list):
            raise LedgerError(f"{self.results}: expected an object with a list 'claims'; delete it to start anew")
        return {entry["number"]: entry for entry in sorted(found, key=lambda entry: entry["number"])}

    def begin(self, asked: Sequence[int], fresh: bool) -> list[int]:
        """What is left to do: all that is asked for, or the rest of a run of the same claims that was stopped."""
        data = _read(self.running)
        same = isinstance(data, dict) and data.get("asked") == list(asked) and not fresh
        done = [number for number in data.get("done", []) if number in self.entries()] if same else []
        self._mark(asked, done)
        return [number for number in asked if number not in done]

    def add(self, entry: Entry) -> None:
        """Put an entry in the place of the claim's last one, and mark it done."""
        entries = {**self.entries(), entry["number"]: entry}
        _write(self.results, {"claims": [entries[number] for number in sorted(entries)]})
        data = _read(self.running)
        if isinstance(data, dict) and data:
            self._mark(data["asked"], [*data["done"], entry["number"]])

    def end(self) -> None:
        """All that was asked for is done."""
        self.running.unlink(missing_ok=True)

    def _mark(self, asked: Sequence[int], done: Sequence[int]) -> None:
        _write(self.running, {"asked": list(asked), "done": list(done)})


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise LedgerError(f"{file} is not JSON: {error}; delete it to start anew") from error


def _write(file: Path, data: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    temporary.replace(file)
