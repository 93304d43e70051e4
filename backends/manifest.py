"""`artifact.json`: what stands beside the files of an artifact, so that it can be opened again without the program."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tersor.ir.errors import ArchiveError
from tersor.ir.signature import Signature
from tersor.ir.signature_json import signature_from_json, signature_to_json
from tersor.ir.whole_file import write_text

from .base import AuditRow, LoweringReport

NAME = "artifact.json"
_FORMAT = 1


def write_manifest(folder: Path, signature: Signature, report: LoweringReport, files: Sequence[Path]) -> None:
    """Write the manifest of these files, which stand in the folder, beside the signature and the report.

    It is written last, and takes its name at once.
    """
    document = {
        "format": _FORMAT,
        "target": report.target,
        "signature": signature_to_json(signature),
        "report": asdict(report),
        "digests": {file.name: _digest(file) for file in files},
    }
    write_text(folder / NAME, json.dumps(document, indent=1))


def read_manifest(folder: Path, target: str) -> tuple[Signature, LoweringReport]:
    """Read the manifest of a target's artifact in a folder, and check its files.

    Raises ArchiveError where it is missing, damaged, of another target or a newer version, or a file differs from
    what was written.
    """
    try:
        document = json.loads((folder / NAME).read_text())
        if document["format"] > _FORMAT:
            raise ArchiveError(f"{folder} was written by a newer version", expected=_FORMAT, found=document["format"])
        if document["target"] != target:
            raise ArchiveError(f"{folder} is of another target", expected=target, found=document["target"])
        signature, report = signature_from_json(document["signature"]), _report(document["report"])
        digests = {Path(str(name)).name: str(digest) for name, digest in document["digests"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArchiveError(f"{folder} is not an artifact: {error}", expected=f"a folder with {NAME}") from error
    for name, digest in digests.items():
        _check(folder / name, digest)
    return signature, report


def _check(file: Path, digest: str) -> None:
    if not file.is_file():
        raise ArchiveError(f"the artifact lacks {file.name}", found=str(file.parent))
    if _digest(file) != digest:
        hint = "lower the program again"
        raise ArchiveError(f"{file.name} is not the file that {NAME} describes", found=str(file), hint=hint)


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _report(data: Mapping[str, Any]) -> LoweringReport:
    return LoweringReport(
        target=str(data["target"]),
        audit=tuple(AuditRow(**row) for row in data["audit"]),
        files={str(name): int(size) for name, size in data["files"].items()},
        notes=tuple(str(note) for note in data["notes"]),
    )
