"""Float32 that is float32 on a GPU too, for as long as programs are compared."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

Undo = Callable[[], None]

_LOCK = threading.Lock()
_undo: list[Undo] = []
_inside = 0


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Let float32 on a GPU be float32: its convolutions have 10 bits of mantissa (TF32) unless one asks for more.

    Within it are the comparisons before and after a pass, and the values that passes look at. Training is as the user
    has set it. The switches belong to the process: the first thread to come in sets them, the last to go out puts them
    back. For a program on the CPU nothing is touched.
    """
    if device.type != "cuda":
        yield
        return
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _inside
    with _LOCK:
        _inside += 1
        if _inside == 1:
            _undo.append(_switch_off())


def _leave() -> None:
    global _inside
    with _LOCK:
        _inside -= 1
        if _inside == 0:
            _undo.pop()()


def _switch_off() -> Undo:
    """By torch's older switches, which tracing reads: it would fail in another thread where the newer ones are set."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    try:
        before = cudnn.allow_tf32, matmul.allow_tf32
    except RuntimeError:  # the newer ones are set already
        return _switch_off_newer()
    cudnn.allow_tf32 = matmul.allow_tf32 = False

    def undo() -> None:
        cudnn.allow_tf32, matmul.allow_tf32 = before

    return undo


def _switch_off_newer() -> Undo:
    parts: Any = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]  # torch's stub
    before = [part.fp32_precision for part in parts]
    for part in parts:
        part.fp32_precision = "ieee"

    def undo() -> None:
        for part, value in zip(parts, before, strict=True):
            part.fp32_precision = value

    return undo
