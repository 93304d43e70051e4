"""A program in one file: safetensors, with everything that is not a tensor as JSON in its header.

Other tools read the tensors of such a file; its header's `tersor` entry is text, shown here in part:

    {"sha256": "9f86d0...", "format": "tersor.program", "version": 1, "written_by": {"tersor": "0.1.0", ...},
     "name": "Net", "stage": "float", "signature": {...}, "sparsity": {...}, "history": [...],
     "tensors": [{"name": "fc.weight", "parameter": true, "requires_grad": true},
                 {"name": "tied.weight", "same_as": "fc.weight"}],
     "nodes": [{"name": "x", "op": "placeholder", "target": "x"}, ...]}

The digest covers the whole file, read with zeros in the digest's own place: it finds damage, it does not prove who
wrote the file. What a file may name is a closed list (see `graph_json`), so reading one runs no code from it. The same
program gives the same bytes. Example inputs are left out: they are the user's data.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import mmap
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .errors import ArchiveError, TersorError
from .graph_json import graph_from_json, graph_to_json, is_tensor_name
from .program import HistoryEntry, Program
from .signature_json import signature_from_json, signature_to_json
from .sparsity import pattern_from_json, pattern_to_json
from .stage import Stage
from .verifier import verify
from .whole_file import replacing

FORMAT = "tersor.program"
VERSION = 1
"""Raised when older versions of tersor would misread a file."""

_ENTRY = "tersor"
_NO_DIGEST = "0" * 64
_DIGEST_MARK = b'{\\"sha256\\":\\"'
"""What stands before the digest in the header, where the entry is JSON inside a JSON string."""
_STORABLE = frozenset(
    {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.bool}
    | {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8}
    | {torch.complex64}
)
_SIGNS = {
    b"PK": "a zip archive, as torch.save and torch.export write",
    b"\x80": "a pickle",
    b"\x08": "a protobuf, as ONNX",
}


# -- saving ----------------------------------------------------------------------------------------------------------


def save(program: Program, path: Path) -> Path:
    """Write the program to one file, whole or not at all; returns the path.

    Raises ArchiveError where the program breaks a rule of its stage, holds something that a file cannot, or where the
    file cannot be written; an older file of that name is then as it was.
    """
    path = Path(path)
    try:
        verify(program, shapes=())
    except TersorError as error:
        raise ArchiveError(f"{path} was not written: {error.what}", found=error.found, node=error.node) from error
    text = json.dumps(_to_json(program), separators=(",", ":"), allow_nan=False)
    try:
        with replacing(path) as temporary:
            save_file(_storage(program), temporary, metadata={_ENTRY: text})
            _seal(temporary)
        _sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        raise ArchiveError(f"{path} could not be written: {error}", hint="free space, or write elsewhere") from error
    return path


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where folders can be opened for that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _seal(path: Path) -> None:
    """Write the digest into its place, and the file to the disk."""
    with path.open("r+b") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            place = data.find(_DIGEST_MARK) + len(_DIGEST_MARK)
            digest = _digest(data, place)
        file.seek(place)
        file.write(digest.encode())
        file.flush()
        os.fsync(file.fileno())


def _digest(data: mmap.mmap, place: int) -> str:
    """SHA-256 of a file whose digest, at `place`, reads as zeros."""
    digest = hashlib.sha256()
    with memoryview(data) as view:
        digest.update(view[:place])
        digest.update(_NO_DIGEST.encode())
        digest.update(view[place + len(_NO_DIGEST) :])
    return digest.hexdigest()


def _to_json(program: Program) -> dict[str, Any]:
    return {
        "sha256": _NO_DIGEST,
        "format": FORMAT,
        "version": VERSION,
        "written_by": {"tersor": _own_version(), "torch": torch.__version__},
        "name": program.name,
        "stage": program.stage.value,
        "signature": signature_to_json(program.signature),
        "sparsity": {name: pattern_to_json(pattern) for name, pattern in program.sparsity.items()},
        "history": [
            {"name": e.name, "options": dict(e.options), "notes": list(e.notes), "modified": e.modified}
            for e in program.history
        ],
        "tensors": _tensor_table(program.tensors()),
        "nodes": graph_to_json(program.graph),
    }


def _own_version() -> str:
    try:
        return importlib.metadata.version("tersor")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        return "unknown"


def _tensor_table(tensors: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """A row a name, in the module's order; a tied tensor is described under its first name."""
    first: dict[int, str] = {}
    rows: list[dict[str, Any]] = []
    for name, tensor in tensors.items():
        if first.setdefault(id(tensor), name) != name:
            rows.append({"name": name, "same_as": first[id(tensor)]})
        else:
            parameter = isinstance(tensor, nn.Parameter)
            rows.append({"name": name, "parameter": parameter, "requires_grad": tensor.requires_grad})
    return rows


def _storage(program: Program) -> dict[str, Tensor]:
    """The tensors to write, each once, dense in memory of its own."""
    stored: dict[str, Tensor] = {}
    seen: set[int] = set()
    memory: set[int] = set()
    for name, tensor in program.tensors().items():
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        _check_storable(name, tensor)
        dense = tensor.detach().cpu().contiguous()
        address = dense.untyped_storage().data_ptr()
        stored[name] = dense.clone() if address in memory else dense
        memory.add(address)
    return stored


def _check_storable(name: str, tensor: Tensor) -> None:
    if not is_tensor_name(name):
        raise ArchiveError(f"a tensor of the name {name!r} cannot be saved", expected="words joined by dots")
    dense = tensor.layout is torch.strided and tensor.device.type != "meta" and not tensor.is_quantized
    if not dense or tensor.dtype not in _STORABLE:
        raise ArchiveError(
            f"tensor {name!r} cannot be saved",
            expected=f"a dense tensor with values, of {', '.join(sorted(str(d) for d in _STORABLE))}",
            found=f"{tensor.dtype}, {tensor.layout}, on {tensor.device}",
        )


# -- loading ---------------------------------------------------------------------------------------------------------


def load(path: Path) -> Program:
    """Read a file that `save` wrote, check it whole, and give the program it holds, verified, on the CPU.

    Raises ArchiveError, and nothing else, on a file that is missing, cut short, damaged, of another kind, written by
    a newer version, or that names anything but the operators a program may call.
    """
    path = Path(path)
    try:
        return _load(path)
    except ArchiveError:
        raise
    except OSError as error:
        raise ArchiveError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # whatever a part of the file makes a reader, a shape function or a rule raise
        found = getattr(error, "what", None) or f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise ArchiveError(
            f"{path} does not hold a well-formed program", found=found, node=getattr(error, "node", None)
        ) from error


def _load(path: Path) -> Program:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise ArchiveError(f"{path} is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            document = _read_entry(path, data)
    tensors = _read_tensors(path, document["tensors"])
    program = Program.build(
        graph_from_json(document["nodes"], tensors),
        tensors,
        signature_from_json(document["signature"]),
        name=str(document["name"]),
        stage=Stage(document["stage"]),
        sparsity={name: pattern_from_json(pattern) for name, pattern in document["sparsity"].items()},
        history=[_history_entry(entry) for entry in document["history"]],
    )
    verify(program, shapes=())  # build has just propagated the shapes
    return program


def _history_entry(data: Mapping[str, Any]) -> HistoryEntry:
    """`modified` is missing from archives that were written before it was noted."""
    modified = bool(data.get("modified", True))
    return HistoryEntry(str(data["name"]), dict(data["options"]), tuple(data["notes"]), modified)


def _read_entry(path: Path, data: mmap.mmap) -> dict[str, Any]:
    """The header's entry, once format, version and digest are found right."""
    start, end = 8, 8 + int.from_bytes(data[:8], "little")
    mark = data.find(_DIGEST_MARK, start, start + 256)
    if len(data) < end or mark < 0:
        raise _foreign(path, data, cut_short=mark >= 0)
    header = json.loads(data[start:end], object_pairs_hook=_unique)
    document: dict[str, Any] = json.loads(header["__metadata__"][_ENTRY], object_pairs_hook=_unique)
    written = " with torch ".join(str(version) for version in document["written_by"].values())
    if document["format"] != FORMAT:
        raise ArchiveError(f"{path} is not a program", expected=FORMAT, found=document["format"])
    if document["version"] > VERSION:
        raise ArchiveError(
            f"{path} was written by a newer version, tersor {written}: it has format {document['version']}, "
            f"and this version reads up to {VERSION}",
            hint="upgrade tersor",
        )
    digest = _digest(data, mark + len(_DIGEST_MARK))
    if digest != document["sha256"]:
        raise ArchiveError(
            f"{path} is damaged: its content changed after it was written",
            expected=document["sha256"],
            found=digest,
            hint="copy or write the file again",
        )
    return document


def _foreign(path: Path, data: mmap.mmap, *, cut_short: bool) -> ArchiveError:
    if cut_short:
        return ArchiveError(f"{path} is cut short", hint="copy or write the file again")
    known = next((kind for sign, kind in _SIGNS.items() if data[: len(sign)] == sign), None)
    if data[8:9] == b"{":
        known = "safetensors without a program in its header"
    return ArchiveError(
        f"{path} is not a saved program", expected="a file that Program.save wrote", found=known or "something else"
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, refused where it says one thing twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ArchiveError("the file's header names one thing twice")
    return found


def _read_tensors(path: Path, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """The tensors by name, one object for all the names of a tied one."""
    tensors: dict[str, Tensor] = {}
    with safe_open(path, framework="pt") as file:
        stored = set(file.keys())
        for row in rows:
            name = str(row["name"])
            if name in tensors or not is_tensor_name(name):
                raise ArchiveError("two tensors have one name, or a name is not dotted identifiers", found=repr(name))
            if "same_as" in row:
                tensors[name] = tensors[row["same_as"]]
                continue
            stored.remove(name)
            # A copy, so that the program does not depend on the file staying as it is.
            value = file.get_tensor(name).clone()
            tensors[name] = nn.Parameter(value, bool(row["requires_grad"])) if row["parameter"] else value
    if stored:
        raise ArchiveError("the file holds tensors that the program does not name", found=sorted(stored)[:5])
    return tensors
