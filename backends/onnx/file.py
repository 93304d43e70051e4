"""Writing a model: checked before it takes its name, so that a file under that name is whole."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx

from tersor.ir.errors import LoweringError

from ..draft import draft_folder

LIMIT = 2_000_000_000
"""A protobuf file holds less than 2 GiB; larger models keep their tensors in a file beside."""
_SMALL = 1024
_PAGE = 4096


def write_model(model: onnx.ModelProto, folder: Path, *, external: bool = False) -> list[Path]:
    """Write `model.onnx` into the folder, and its tensors into `model-<digest>.data` where asked or too large.

    The files are written and checked under another name first, and the data has a name of its own, so whatever
    interrupts this leaves what was there before. Returns the paths. Raises LoweringError where the checker refuses.
    """
    external = external or sum(len(tensor.raw_data) for tensor in model.graph.initializer) > LIMIT
    with draft_folder(folder) as workplace:
        written = [_write_data(model, workplace)] if external else []
        path = workplace / "model.onnx"
        path.write_bytes(model.SerializeToString())
        _check(path)
        files = [_moved(file, folder) for file in (*written, path)]
    for stale in set(folder.glob("model-*.data")) - set(files):
        stale.unlink()
    return files


def _write_data(model: onnx.ModelProto, folder: Path) -> Path:
    """Move the tensors' bytes to a file, each on a page of its own, so that a runtime can map it."""
    large = [tensor for tensor in model.graph.initializer if len(tensor.raw_data) >= _SMALL]
    digest = hashlib.sha256()
    for tensor in large:
        digest.update(tensor.raw_data)
    path = folder / f"model-{digest.hexdigest()[:16]}.data"
    with path.open("wb") as file:
        for tensor in large:
            file.seek(-(-file.tell() // _PAGE) * _PAGE)
            place = {"location": path.name, "offset": str(file.tell()), "length": str(len(tensor.raw_data))}
            file.write(tensor.raw_data)
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.extend(onnx.StringStringEntryProto(key=k, value=v) for k, v in place.items())
    return path


def _check(path: Path) -> None:
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise LoweringError(f"onnx's checker refuses the model: {error}", hint="check the rules added last") from error


def _moved(file: Path, folder: Path) -> Path:
    return file.replace(folder / file.name)
