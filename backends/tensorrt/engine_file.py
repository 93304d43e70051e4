"""`engine.json`: what an engine was built from, by what and for what, so that it can be told where it does not fit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tersor.ir.errors import ArchiveError
from tersor.ir.printer import to_text
from tersor.ir.program import Program

NAME = "engine.json"
PLAN = "model.engine"
_FORMAT = 1


@dataclass(frozen=True)
class LayerRow:
    """How the engine runs one convolution, linear or matrix product of the program.

    weights, activations: what its kernel reads; a product of two activations has its second operand under weights.
    fused: the other nodes that the kernel computes. sparse: the weight is stored without its zeros. why: where it does
    not run in int8.
    """

    node: str
    operator: str
    macs: int
    weights: str
    activations: str
    kernel: str
    fused: tuple[str, ...] = ()
    sparse: bool = False
    why: str = ""

    @property
    def integer(self) -> bool:
        """Whether int8 is multiplied with int8."""
        return self.weights == self.activations == "int8"


@dataclass(frozen=True)
class EngineInfo:
    """What stands beside an engine.

    profiles: the least, best and greatest shape of each input with a dynamic dimension, one mapping a profile.
    program: digest of the program that was emitted. seconds: how long the builder took.
    """

    package: str
    version: str
    capabilities: tuple[str, ...]
    gpu: str | None
    program: str
    seconds: float
    profiles: tuple[Mapping[str, tuple[tuple[int, ...], ...]], ...]
    layers: tuple[LayerRow, ...]


def write_info(folder: Path, info: EngineInfo) -> Path:
    """Write `engine.json`; it takes its name whole."""
    path = folder / NAME
    draft = path.with_name(f".{NAME}")
    draft.write_text(json.dumps({"format": _FORMAT, **asdict(info)}, indent=1))
    return draft.replace(path)


def read_info(folder: Path) -> EngineInfo:
    """Read `engine.json`. Raises ArchiveError where it is damaged or newer."""
    try:
        document = json.loads((folder / NAME).read_text())
        if document.pop("format") > _FORMAT:
            raise ArchiveError(f"{folder / NAME} was written by a newer version", expected=_FORMAT)
        layers = tuple(_row(row) for row in document.pop("layers"))
        capabilities = tuple(document.pop("capabilities"))
        profiles = tuple(_shapes(profile) for profile in document.pop("profiles"))
        return EngineInfo(capabilities=capabilities, profiles=profiles, layers=layers, **document)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArchiveError(f"{folder / NAME} does not describe an engine: {error}") from error


def _shapes(profile: Mapping[str, Sequence[Sequence[int]]]) -> dict[str, tuple[tuple[int, ...], ...]]:
    return {name: tuple(tuple(map(int, shape)) for shape in shapes) for name, shapes in profile.items()}


def _row(data: dict[str, Any]) -> LayerRow:
    return LayerRow(**{**data, "fused": tuple(data["fused"])})


def program_digest(program: Program) -> str:
    """SHA-256 of a program's graph and tensors: the same for the same program, whoever traced it."""
    digest = hashlib.sha256(to_text(program, tensors=True).encode())
    for name, tensor in sorted(program.tensors().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def misfits(info: EngineInfo, package: str | None, version: str | None, capability: str | None) -> list[str]:
    """What keeps an engine from running with this package, of this version, on a GPU of this capability.

    An engine of TensorRT runs with the version that built it. One of TensorRT for RTX runs on the capabilities that it
    was built for and on newer ones.
    """
    found = []
    if package != info.package:
        found.append(f"it was built by {info.package} {info.version}, and {package or 'no TensorRT'} is installed")
    elif version != info.version:
        found.append(f"it was built by {info.package} {info.version}, and {version} is installed")
    if capability is None:
        found.append("there is no NVIDIA GPU here")
    elif info.package == "tensorrt_rtx" and not _known_to_rtx(capability):
        found.append(f"TensorRT for RTX runs on 7.5 to 8.9 and 12.x, and the GPU here has {capability}")
    elif not _runs_on(info, capability):
        found.append(f"it was built for {', '.join(info.capabilities)}, and the GPU here has {capability}")
    return found


def _known_to_rtx(capability: str) -> bool:
    """Whether TensorRT for RTX serves such GPUs at all: not those of data centres with 9.0 (Hopper) or 10.x."""
    return (7, 5) <= _number(capability) < (9, 0) or _number(capability)[0] == 12


def _runs_on(info: EngineInfo, capability: str) -> bool:
    if info.package != "tensorrt_rtx":
        return capability in info.capabilities
    return _number(capability) >= min(map(_number, info.capabilities))


def _number(capability: str) -> tuple[int, int]:
    major, _, minor = capability.partition(".")
    return int(major), int(minor)
