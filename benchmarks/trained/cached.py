"""Programs that took long to make, kept in the folder of trained weights, which git ignores."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch

import tersor as ts
from tersor.ir.errors import ArchiveError

from . import trained


def cached(name: str, basis: str, make: Callable[[], ts.Program]) -> ts.Program:
    """What `make` gave the last time with the same basis, which says all that decides it; else what it gives now."""
    digest = hashlib.sha256(f"{torch.__version__} {basis}".encode()).hexdigest()[:16]
    file = trained.FOLDER / f"{name}-{digest}.tersor"
    try:
        return ts.load(file)
    except (ArchiveError, FileNotFoundError):
        program = make()
    file.parent.mkdir(exist_ok=True)
    program.save(file)
    return program


def fingerprint(program: ts.Program) -> str:
    """A digest of a program's graph and tensors, for a basis."""
    digest = hashlib.sha256(str(program).encode())
    for tensor in program.tensors().values():
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()
