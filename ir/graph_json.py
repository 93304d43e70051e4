"""A graph as plain data and back. What the data may name is a closed list, so reading it runs no code.

Targets are text: `aten.add.Tensor` and `tersor.fake_quantize.default` stand for operators that are registered under
that name, `python.mul` for one of the functions in SYMBOLIC_OPERATORS. An argument is itself where JSON has it, a
list, or an object with one key that says what it is: {"node": "conv2d"}, {"dtype": "int8"}, {"float": "-inf"}.
"""

from __future__ import annotations

import keyword
import math
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from .errors import ArchiveError
from .operators import FAKE_QUANTIZE
from .origin import KEY as ORIGIN
from .origin import Origin
from .program import REPLACES
from .shapes import SYMBOLIC_OPERATORS

_NAMESPACES = {"aten": torch.ops.aten, FAKE_QUANTIZE.namespace: torch.ops.tersor}
_FUNCTIONS = {function.__name__: function for function in SYMBOLIC_OPERATORS}
_CONSTANTS: dict[type, dict[str, Any]] = {
    kind: {str(value).removeprefix("torch."): value for value in vars(torch).values() if isinstance(value, kind)}
    for kind in (torch.dtype, torch.layout, torch.memory_format)
}
_KINDS = {kind.__name__: values for kind, values in _CONSTANTS.items()}
_LARGEST_POWER = 8
_DEVICE = re.compile(r"[a-z]+(:\d{1,3})?")
_TENSOR_NAME = re.compile(r"\w+(\.\w+)*")


def is_tensor_name(name: str) -> bool:
    """Whether `name` is a dotted path that a module's tensors can have, such as `layers.0.weight`."""
    return _TENSOR_NAME.fullmatch(name) is not None


# -- writing ---------------------------------------------------------------------------------------------------------


def graph_to_json(graph: fx.Graph) -> list[dict[str, Any]]:
    """The nodes in order. Raises ArchiveError naming the node whose target, name or argument has no place in a file."""
    names = fx.graph._Namespace()
    nodes = []
    for node in graph.nodes:
        if names.create_name(node.name, None) != node.name:
            raise ArchiveError(f"{node.name!r} is not a name that a node can have once more", node=node)
        nodes.append(_node_to_json(node))
    return nodes


def _node_to_json(node: fx.Node) -> dict[str, Any]:
    data: dict[str, Any] = {"name": node.name, "op": node.op, "target": _target_to_json(node)}
    if node.args:
        data["args"] = [_argument_to_json(argument, node) for argument in node.args]
    if node.kwargs:
        data["kwargs"] = {key: _argument_to_json(value, node) for key, value in node.kwargs.items()}
    origin = Origin.of(node)
    if origin is not None:
        data[ORIGIN] = [origin.file, origin.line, origin.code, origin.module]
    if REPLACES in node.meta:
        data[REPLACES] = node.meta[REPLACES]
    return data


def _target_to_json(node: fx.Node) -> str:
    target = node.target
    if node.op != "call_function":
        return str(target)
    if target in SYMBOLIC_OPERATORS:
        return f"python.{target.__name__}"
    if isinstance(target, torch._ops.OpOverload) and target.namespace in _NAMESPACES:
        return f"{target.namespace}.{target._opname}.{target._overloadname}"
    raise ArchiveError(
        f"the call of {target} cannot be saved",
        node=node,
        expected=f"an operator of {', '.join(_NAMESPACES)}, or arithmetic on sizes",
    )


def _argument_to_json(value: Any, node: fx.Node) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, list | tuple):
        items = [_argument_to_json(item, node) for item in value]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, torch.device):
        return {"device": "cpu" if value.type != "meta" else str(value)}  # a file says nothing of where it is read
    if type(value) in _CONSTANTS:
        return {type(value).__name__: str(value).removeprefix("torch.")}
    raise ArchiveError(
        f"an argument of type {type(value).__name__} cannot be saved",
        node=node,
        expected="nodes, numbers, text, dtypes, devices, layouts, memory formats, and lists of them",
    )


# -- reading ---------------------------------------------------------------------------------------------------------


def graph_from_json(nodes: Sequence[Mapping[str, Any]], tensors: Mapping[str, torch.Tensor]) -> fx.Graph:
    """The inverse of `graph_to_json`, for a module that holds `tensors`.

    Raises ArchiveError on a target outside the list, and on a name or a reference that a graph cannot have; KeyError,
    TypeError or ValueError on data of another shape.
    """
    graph = fx.Graph()
    known: dict[str, fx.Node] = {}
    for data in nodes:
        node = _read_node(graph, data, known)
        if node.op == "get_attr" and node.target not in tensors:
            raise ArchiveError("the node reads a tensor that the file does not hold", node=node, found=node.target)
        known[node.name] = node
    inputs = [str(node.target) for node in graph.find_nodes(op="placeholder")]
    if len({"self", *inputs}) != len(inputs) + 1:
        raise ArchiveError("two inputs have one name, or one is named self", found=", ".join(inputs))
    return graph


def _read_node(graph: fx.Graph, data: Mapping[str, Any], known: Mapping[str, fx.Node]) -> fx.Node:
    name, op, target = str(data["name"]), str(data["op"]), str(data["target"])
    args = tuple(_read_argument(value, known, name) for value in data.get("args", ()))
    kwargs = {key: _read_argument(value, known, name) for key, value in data.get("kwargs", {}).items()}
    if not all(map(_is_identifier, kwargs)):
        raise ArchiveError("a keyword is not an identifier", node=name, found=sorted(kwargs))
    function = _read_target(op, target, name)
    if function is operator.pow and not (len(args) == 2 and args[1] in range(_LARGEST_POWER + 1)):
        raise ArchiveError("a size is raised to a power that no model needs", node=name, found=args[1:])
    node = graph.create_node(op, function, args, kwargs, name)
    if node.name != name:
        raise ArchiveError("two nodes have one name, or a name is not an identifier", found=repr(name))
    if ORIGIN in data:
        file, line, code, module = data[ORIGIN]
        node.meta[ORIGIN] = Origin(str(file), int(line), str(code), str(module))
    if REPLACES in data:
        node.meta[REPLACES] = str(data[REPLACES])
    return node


def _read_target(op: str, target: str, name: str) -> Any:
    """What a node's target text stands for."""
    if op == "call_function":
        return _read_function(target, name)
    legal = {"placeholder": _is_identifier(target), "get_attr": is_tensor_name(target), "output": target == "output"}
    if not legal.get(op, False):
        raise ArchiveError(f"a node cannot be {op} of {target!r}", node=name)
    return target


def _is_identifier(text: str) -> bool:
    """Names of inputs and of keywords stand as they are in the code that fx generates, so nothing else may."""
    return text.isascii() and text.isidentifier() and not keyword.iskeyword(text)


def _read_function(target: str, name: str) -> Any:
    namespace, _, rest = target.partition(".")
    packet, _, overload = rest.partition(".")
    if namespace == "python" and rest in _FUNCTIONS:
        return _FUNCTIONS[rest]
    operators = getattr(_NAMESPACES.get(namespace), packet, None)
    if not isinstance(operators, torch._ops.OpOverloadPacket) or overload not in operators.overloads():
        raise ArchiveError(
            f"the file calls {target!r}, which is not an operator that a program may call",
            node=name,
            expected=f"an operator of {', '.join(_NAMESPACES)} that this version of torch has",
        )
    function = getattr(operators, overload)
    if not _is_pure(function):
        raise ArchiveError(f"the file calls {target!r}, which does more than compute its result", node=name)
    return function


def _is_pure(target: torch._ops.OpOverload) -> bool:
    """Whether calling it only computes: no write to an argument, no file, and something to return."""
    schema = target._schema
    return bool(schema.returns) and not schema.is_mutable and all(a.name != "filename" for a in schema.arguments)


def _read_argument(value: Any, known: Mapping[str, fx.Node], name: str) -> Any:
    if isinstance(value, list):
        return [_read_argument(item, known, name) for item in value]
    if isinstance(value, int) and value.bit_length() > 64:
        raise ArchiveError("a number is out of the range of 64 bits", node=name)
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "node":
        if content not in known:
            raise ArchiveError(f"reads %{content}, which is not defined before it", node=name)
        return known[content]
    if kind == "tuple":
        return tuple(_read_argument(item, known, name) for item in content)
    if kind == "float":
        return float(content)
    if kind == "device" and _DEVICE.fullmatch(content):
        return torch.device(content)
    if kind in _KINDS and content in _KINDS[kind]:
        return _KINDS[kind][content]
    raise ArchiveError(f"an argument is not known: {kind} {content!r}", node=name)
