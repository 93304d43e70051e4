"""A program as text: a node a line, with types and quantization parameters. The same model gives the same text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from .block_operators import FAKE_QUANTIZE_BLOCKS
from .operators import FAKE_QUANTIZE, FAKE_QUANTIZE_BIAS
from .shapes import KEY, describe

if TYPE_CHECKING:
    from .program import Program

_SHOWN_VALUES = 3


def to_text(program: Program, *, tensors: bool = False) -> str:
    """The program's text; `tensors` adds the table of parameters and buffers.

    program Net (float)
      input %x : float32[batch, 3, 8, 8]
      %conv2d : float32[batch, 8, 8, 8] = aten.conv2d(%x, @c.weight, @c.bias, [1, 1], [1, 1])
      return output=%conv2d
    """
    lines = [f"program {program.name} ({program.stage})"]
    for name, span in program.signature.dims.items():
        lines.append(f"  dim {name} in {span}")
    for node in program.graph.nodes:
        if node.op == "placeholder":
            lines.append(f"  input %{node.name} : {describe(program, node.meta[KEY])}")
        elif node.op == "call_function":
            lines.append(f"  %{node.name} : {describe(program, node.meta[KEY])} = {call_text(program, node)}")
    returned = zip(program.signature.output_names, program.outputs, strict=True)
    lines.append(f"  return {', '.join(f'{name}={_value(program, node)}' for name, node in returned)}")
    for name, pattern in program.sparsity.items():
        lines.append(f"  sparsity @{name} : {pattern}")
    if tensors:
        lines += [f"  tensor @{name} : {describe(program, tensor)}" for name, tensor in program.tensors().items()]
    return "\n".join(lines)


def call_text(program: Program, node: fx.Node) -> str:
    """The right-hand side of a node's line."""
    arguments = [_value(program, argument) for argument in node.args]
    if node.target in (FAKE_QUANTIZE, FAKE_QUANTIZE_BIAS, FAKE_QUANTIZE_BLOCKS):
        arguments = [_parameter(program, a) or text for a, text in zip(node.args, arguments, strict=True)]
    arguments += [f"{key}={_value(program, value)}" for key, value in node.kwargs.items()]
    return f"{operator_name(node.target)}({', '.join(arguments)})"


def operator_name(target: Any) -> str:
    """`aten.add.Tensor`, `aten.relu` (the default overload is not written), `getitem`."""
    if isinstance(target, torch._ops.OpOverload):
        name = f"{target.namespace}.{target._opname}"
        return name if target._overloadname == "default" else f"{name}.{target._overloadname}"
    return str(getattr(target, "__name__", target))


def _parameter(program: Program, argument: Any) -> str | None:
    """A scale or zero point by its values; a weight stays a name."""
    tensor = program.constant(argument)
    name = str(argument.target) if isinstance(argument, fx.Node) else ""
    if tensor is None or not name.endswith(("scale", "zero_point")):
        return None
    return f"{name.rpartition('.')[2]}={_numbers(tensor)}"


def _numbers(tensor: Tensor) -> str:
    values = [f"{value:.6g}" for value in tensor.detach().flatten()[:_SHOWN_VALUES].tolist()]
    if tensor.dim() == 0:
        return values[0]
    return f"[{', '.join(values)}{', ...' if tensor.numel() > _SHOWN_VALUES else ''}]"


def _value(program: Program, value: Any) -> str:
    if isinstance(value, fx.Node):
        return f"@{value.target}" if value.op == "get_attr" else f"%{value.name}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(program, item) for item in value)}]"
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return str(value)
