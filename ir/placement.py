"""Where a program is: its tensors are on one device, and operators that make tensors make them there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from .errors import TersorError

if TYPE_CHECKING:
    from .program import Program

CPU = torch.device("cpu")


def home_of(program: Program) -> torch.device | None:
    """The device of the first tensor, None where there is none."""
    first = next(chain(program.module.parameters(), program.module.buffers()), None)
    return None if first is None else first.device


def device_of(program: Program) -> torch.device:
    """The device of the program's tensors; without any, that of its example, or the CPU."""
    home = home_of(program)
    if home is None:
        home = next((tensor.device for tensor in program.example or ()), CPU)
    return home


def on(value: Tensor, device: torch.device | None) -> Tensor:
    """The tensor on a device; a parameter stays one."""
    if device is None or value.device == device or value.is_meta:
        return value
    there = value.detach().to(device)
    return nn.Parameter(there, value.requires_grad) if isinstance(value, nn.Parameter) else there


def moved(program: Program, device: torch.device) -> Program:
    """A copy on a device, the program itself where it is there already."""
    device = _exact(device)
    if _is_on(program, device):
        return program
    copied = program.copy()
    move(copied, device)
    if copied.example is not None:
        copied.example = tuple(tensor.to(device) for tensor in copied.example)
    return copied


def move(program: Program, device: torch.device) -> None:
    """Put a program's own tensors and what its operators make on a device, in place. The example is not looked at."""
    device = _exact(device)
    program._put({id(tensor): on(tensor, device) for tensor in program.tensors().values()})
    if [node for node in program.graph.nodes if place(node, device)]:
        program.changed()


def place(node: fx.Node, device: torch.device) -> bool:
    """Let an operator that makes a tensor make it on a device; whether it made it elsewhere before."""
    if not _makes_tensors(node):
        return False
    named = node.kwargs.get("device")
    there = CPU if named is None else torch.device(named)  # type: ignore[arg-type]  # a device, by its schema
    if there == device:
        return False
    node.update_kwarg("device", device)
    return True


def misplaced(program: Program) -> Iterator[tuple[fx.Node, torch.device]]:
    """The nodes that read or make a tensor on another device than the program's, with that device."""
    home = device_of(program)
    for node in program.graph.nodes:
        if node.op == "get_attr":
            found = program.tensor(str(node.target)).device
        elif _makes_tensors(node):
            named: Any = node.kwargs.get("device")
            found = CPU if named is None else torch.device(named)
        else:
            continue
        if found != home:
            yield node, found


def _exact(device: torch.device) -> torch.device:
    """A device with its index: "cuda" is the current one. Raises TersorError where this machine has no such device."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise TersorError(f"a program cannot be moved to {device}", found=reason) from error


def _is_on(program: Program, device: torch.device) -> bool:
    tensors: Sequence[Tensor] = (*program.tensors().values(), *(program.example or ()))
    return all(tensor.device == device for tensor in tensors) and not next(misplaced(program), None)


def _makes_tensors(node: fx.Node) -> bool:
    """Whether an operator says on which device its result is: it is told so, or reads no tensor that would say."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    if node.kwargs.get("device") is not None:
        return True
    arguments = node.target._schema.arguments
    return any(a.name == "device" for a in arguments) and not any("Tensor" in str(a.type) for a in arguments)
