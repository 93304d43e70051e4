"""Mutants of small models: of their bytes, of their structure, and of what they mean. Each has a number.

Most of the mutations set something to a strange value; the others move parts of models about, so that cycles, repeats
and calls of themselves come about.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor  # type: ignore[import-untyped]  # its stubs are another package
from google.protobuf.message import Message  # type: ignore[import-untyped]  # as above
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from seeds import RULES, made_tensor, seed, values  # type: ignore[import-not-found]  # beside this file, a script's

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
Random = random.Random

# -- Strange values ----------------------------------------------------------------------------------------------------

INTEGERS = (0, 1, -1, 2, 3, 4, 7, 64, 127, 1 << 10, 1 << 20, 1 << 24, 1 << 31, (1 << 31) - 1, -(1 << 31), 1 << 33,
            1 << 40, 1 << 62, (1 << 63) - 1, -(1 << 63))  # fmt: skip
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 1e-45, 1e38, float("nan"), float("inf"), float("-inf"), 1e9, 1e19)
TEXTS = ("", "x", "y", "s", "w", "self", "class", "None", "__class__", "__init__", "a.b", "a", "forward", ".", "..",
         "../weights.bin", "/etc/passwd", "/dev/zero", "weights.bin", "\0", "a\0b", "\u202e\U0001f600\u0301", "²", "0",
         "a" * 5000, "a." * 3000, "NOTSET", "SAME_UPPER", "linear", "cubic", "reflect", "wrap", "edge", "ai.onnx",
         "ab,bc->ac", "...i,...i", "ij,jk,kl,lm->im", "import os", "(lambda: 1)()", "fifo", "link.bin", "loop.bin",
         "folder")  # fmt: skip
OPSETS = (0, 7, 9, 10, 11, 12, 13, 17, 18, 21, 23, 1000, -1, 1 << 40)


def number(rng: Random) -> int:
    return rng.choice(INTEGERS) if rng.random() < 0.8 else rng.randrange(-20, 40)


def text(rng: Random, model: ModelProto) -> str:
    """A strange text, or one that is a name in the model: so cycles, repeats and self-calls come about."""
    names = [name for node in model.graph.node for name in (*node.input, *node.output, node.op_type)]
    names += [f.name for f in model.functions] + [t.name for t in model.graph.initializer]
    return rng.choice(names) if names and rng.random() < 0.5 else rng.choice(TEXTS)


# -- Mutations of bytes ------------------------------------------------------------------------------------------------


def flip(rng: Random, data: bytearray) -> bytearray:
    for _ in range(rng.choice((1, 1, 2, 8))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def truncate(rng: Random, data: bytearray) -> bytearray:
    return data[: rng.randrange(len(data))]


def splice(rng: Random, data: bytearray) -> bytearray:
    other: bytes = seed(rng)
    return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]


def duplicate(rng: Random, data: bytearray) -> bytearray:
    first = rng.randrange(len(data))
    part = data[first : first + rng.choice((1, 4, 32, 256))]
    return data[:first] + part * rng.choice((1, 2, 50)) + data[first:]


def insert(rng: Random, data: bytearray) -> bytearray:
    place = rng.randrange(len(data))
    return (
        data[:place] + bytes(rng.choice((0, 0x80, 0xFF, 10, 8, 18)) for _ in range(rng.randrange(1, 12))) + data[place:]
    )


def overwrite(rng: Random, data: bytearray) -> bytearray:
    place = rng.randrange(len(data))
    data[place : place + rng.choice((1, 2, 10))] = rng.choice((b"\0", b"\xff" * 9 + b"\1", b"\x80", b"\x7f" * 4))
    return data


BYTES: tuple[Callable[[Random, bytearray], bytearray], ...] = (flip, truncate, splice, duplicate, insert, overwrite)

# -- Mutations of the structure ----------------------------------------------------------------------------------------


def messages(root: Message) -> list[Message]:
    """The message and all within it."""
    found, stack = [], [root]
    while stack:
        message = stack.pop()
        found.append(message)
        for field, value in message.ListFields():
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                stack.extend(value if field.is_repeated else [value])
    return found


def strange(rng: Random, field: Any, model: ModelProto) -> Any:
    """A value for a field of a message."""
    if field.type == FieldDescriptor.TYPE_ENUM:
        return rng.choice(field.enum_type.values).number
    if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return rng.choice(FLOATS)
    if field.type == FieldDescriptor.TYPE_STRING:
        return text(rng, model)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return rng.choice((b"", b"\xff\xfe", rng.randbytes(8), text(rng, model).encode()))
    if field.name == "version":
        return rng.choice(OPSETS)
    if field.name in ("data_type", "elem_type", "type"):
        return rng.randrange(-1, 28)
    value = number(rng)
    if field.cpp_type == FieldDescriptor.CPPTYPE_INT32:
        return (value + (1 << 31)) % (1 << 32) - (1 << 31)
    return value % (1 << 63) if field.cpp_type == FieldDescriptor.CPPTYPE_UINT64 else value


def change_field(rng: Random, model: ModelProto) -> None:
    """One field of one message set, added to, deleted, doubled, or its items swapped."""
    message = rng.choice(messages(model))
    field = rng.choice(
        message.DESCRIPTOR.fields if rng.random() < 0.3 else [f for f, _ in message.ListFields()] or [None]
    )
    if field is None:
        return
    value = getattr(message, field.name)
    if not field.is_repeated:
        if rng.random() < 0.2 or field.type == FieldDescriptor.TYPE_MESSAGE:
            message.ClearField(field.name)
        else:
            setattr(message, field.name, strange(rng, field, model))
    elif not value or rng.random() < 0.2:
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            value.add()
        else:
            value.append(strange(rng, field, model))
    else:
        change_item(rng, field, value, model)


def change_item(rng: Random, field: Any, value: Any, model: ModelProto) -> None:
    place, other = rng.randrange(len(value)), rng.randrange(len(value))
    way = rng.randrange(4)
    if way == 0:
        del value[place]
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        copy = type(value[place])()
        copy.CopyFrom(value[place])
        if way == 1:
            value[place].CopyFrom(value[other])
            value[other].CopyFrom(copy)
        else:
            for _ in range(rng.choice((1, 1, 1, 40))):
                value.add().CopyFrom(copy)
    elif way == 1:
        value[place], value[other] = value[other], value[place]
    elif way == 2:
        value.append(value[place])
    else:
        value[place] = strange(rng, field, model)


def graft(rng: Random, model: ModelProto) -> None:
    """A message replaced by another of its type from this model or another: graphs nest, attributes change owners."""
    source = model if rng.random() < 0.5 else ModelProto.FromString(seed(rng))
    chosen = rng.choice(messages(model)[1:] or [model])
    donors = [m for m in messages(source) if type(m) is type(chosen)]
    if donors:
        donor = type(chosen)()
        donor.CopyFrom(rng.choice(donors))
        chosen.CopyFrom(donor)


def change_name(rng: Random, model: ModelProto) -> None:
    """A name that is read or given made another."""
    node = rng.choice(model.graph.node or [NodeProto()])
    names = rng.choice((node.input, node.output))
    if names:
        names[rng.randrange(len(names))] = text(rng, model)


def change_operator(rng: Random, model: ModelProto) -> None:
    """A node's operator made another, its inputs and attributes left."""
    node = rng.choice(model.graph.node or [NodeProto()])
    if rng.random() < 0.2:
        model.functions.add().CopyFrom(helper.make_function("", node.op_type, ["a"], ["b"], [node], model.opset_import))
    node.domain, node.op_type = rng.choice(sorted(RULES))


def change_attribute(rng: Random, model: ModelProto) -> None:
    """An attribute, also one that the node lacked, of any type."""
    nodes = [message for message in messages(model) if isinstance(message, NodeProto)]
    node = rng.choice(nodes or [NodeProto()])
    known = onnx.defs.get_schema(node.op_type).attributes if onnx.defs.has(node.op_type) else {}
    name = rng.choice([*known, *(attribute.name for attribute in node.attribute)] or ["axis"])
    for index in range(len(node.attribute))[::-1]:
        if node.attribute[index].name == name:
            del node.attribute[index]
    length = rng.choice((0, 1, 2, 3, 4, 8))
    makers: list[Callable[[], Any]] = [
        *[lambda: number(rng)] * (6 if name in known and known[name].type == onnx.defs.OpSchema.AttrType.INT else 1),
        lambda: [number(rng) for _ in range(length)],
        lambda: rng.choice(FLOATS),
        lambda: [rng.choice(FLOATS) for _ in range(length)],
        lambda: text(rng, model),
        lambda: made_tensor(rng, "t"),
        lambda: GraphProto.FromString(model.graph.SerializeToString()),
    ]
    made: Any = rng.choice(makers)
    value = made()
    kind = AttributeProto.INTS if value == [] else None
    node.attribute.append(helper.make_attribute(name, value, attr_type=kind))


def nest(rng: Random, model: ModelProto) -> None:
    """The graph as a branch of itself, deeper and deeper; past what protobuf reads at times."""
    for _ in range(rng.choice((1, 5, 20, 40))):
        graph = GraphProto.FromString(model.graph.SerializeToString())
        if len(model.SerializeToString()) > 40_000:
            return
        model.graph.node.insert(0, helper.make_node("If", ["c"], ["q"], then_branch=graph, else_branch=GraphProto()))
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), "c"))


STRUCTURE: tuple[Callable[[Random, ModelProto], None], ...] = (
    *[change_field] * 4,
    graft,
    change_name,
    change_operator,
    *[change_attribute] * 3,
    nest,
)

REPEATED = ("Concat", "Mul", "Add", "Tile", "Pow", "Gather", "MatMul", "Expand", "Einsum")

# -- Mutations of the meaning ------------------------------------------------------------------------------------------


def change_data(rng: Random, model: ModelProto) -> None:
    """Numbers of a small constant made strange: sizes, axes, lengths, scales."""
    tensors = [m for m in messages(model) if isinstance(m, TensorProto) and m.data_type in (FLOAT, INT64)]
    small = [m for m in tensors if len(m.raw_data) <= 512 and m.data_location != TensorProto.EXTERNAL]
    if not small:
        return
    chosen = rng.choice(small)
    try:
        array = numpy_helper.to_array(chosen).flatten()
    except (ValueError, TypeError):
        return
    for _ in range(rng.choice((1, 1, 2, len(array)))):
        if len(array):
            array[rng.randrange(len(array))] = number(rng) if array.dtype.kind == "i" else rng.choice(FLOATS)
    shape, name = list(chosen.dims), chosen.name
    chosen.CopyFrom(numpy_helper.from_array(array, name))
    del chosen.dims[:]
    chosen.dims.extend(shape if rng.random() < 0.9 else [len(array), 1])


def change_sizes(rng: Random, model: ModelProto) -> None:
    """The sizes or the type of a tensor, its data left; or of an input."""
    kinds = (TensorProto, onnx.TensorShapeProto.Dimension)
    chosen = rng.choice([m for m in messages(model) if isinstance(m, kinds)] or [TensorProto()])
    if isinstance(chosen, onnx.TensorShapeProto.Dimension):
        if rng.random() < 0.5:
            chosen.dim_param = text(rng, model)
        else:
            chosen.dim_value = number(rng)
        return
    way = rng.randrange(5)
    if way == 0:
        chosen.dims.extend([number(rng)] * rng.choice((1, 2, 70, 3000)))
    elif way == 1 and chosen.dims:
        chosen.dims[rng.randrange(len(chosen.dims))] = number(rng)
    elif way == 2:
        chosen.data_type = rng.randrange(-1, 28)
    elif way == 3:
        chosen.raw_data = rng.randbytes(rng.choice((0, 1, 7, 16, 4096)))
    else:
        chosen.segment.begin = number(rng)


def to_constant(rng: Random, model: ModelProto) -> None:
    """An input made a constant: what is computed from it is computed at import."""
    if model.graph.input:
        place = rng.randrange(len(model.graph.input))
        model.graph.initializer.append(made_tensor(rng, model.graph.input[place].name))
        if rng.random() < 0.7:
            del model.graph.input[place]


def to_input(rng: Random, model: ModelProto) -> None:
    """A constant made an input of any type and strange sizes."""
    if model.graph.initializer:
        chosen = model.graph.initializer.pop(rng.randrange(len(model.graph.initializer)))
        sizes = [*chosen.dims] if rng.random() < 0.5 else [rng.choice(("n", 2, number(rng))) for _ in chosen.dims]
        kind = chosen.data_type if rng.random() < 0.5 else rng.randrange(1, 20)
        sizes = [size if isinstance(size, str) else abs(size) % (1 << 63) for size in sizes]
        model.graph.input.append(helper.make_tensor_value_info(chosen.name, kind, sizes))


def change_external(rng: Random, model: ModelProto) -> None:
    """A tensor whose data lies elsewhere: outside the folder, beyond the end, in what is no file."""
    chosen = rng.choice(model.graph.initializer or [TensorProto()])
    chosen.ClearField("raw_data")
    chosen.data_location = TensorProto.EXTERNAL
    del chosen.external_data[:]
    location = rng.choice((*TEXTS, *["weights.bin", "sparse.bin", "./weights.bin", "folder/../weights.bin"] * 6))
    chosen.external_data.add(key="location", value=location)
    for key in ("offset", "length"):
        if rng.random() < 0.6:
            strange_text = rng.choice((str(number(rng)), "16", "8", "0", "1e3", "٣", " 1", "-1", "0x10", ""))
            chosen.external_data.add(key=key, value=strange_text)
    if rng.random() < 0.2:
        chosen.dims[:] = [abs(number(rng)) % (1 << 63)]


def repeat_node(rng: Random, model: ModelProto) -> None:
    """A chain of a node on its own result: doubling, squaring, sums of sums."""
    nodes = model.graph.node
    if not nodes:
        return
    if rng.random() < 0.5:
        domain, operator = rng.choice([*(("", name) for name in REPEATED), rng.choice(sorted(RULES))])
        chosen = helper.make_node(operator, [rng.choice(nodes[0].input or ["x"])] * 2, ["h"], domain=domain)
        if operator == "Concat":
            chosen.attribute.append(helper.make_attribute("axis", 0))
        if operator == "Einsum":
            chosen.attribute.append(helper.make_attribute("equation", "...i,...j->...ij"))
    else:
        chosen = NodeProto.FromString(rng.choice(nodes).SerializeToString())
    if not (chosen.input and chosen.output):
        return
    place = rng.randrange(len(chosen.input))
    every = rng.random() < 0.5
    last = chosen.input[place]
    chain = []
    for turn in range(rng.choice((3, 12, 40, 100))):
        step = NodeProto.FromString(chosen.SerializeToString())
        step.input[:] = [last if every or i == place else name for i, name in enumerate(step.input)]
        last = f"chain{turn}"
        step.output[:] = [last, *[""] * (len(step.output) - 1)]
        chain.append(step)
    kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del nodes[:]
    first = rng.randrange(len(kept) + 1)
    nodes.extend([*kept[:first], *chain, *kept[first:]])
    model.graph.output.append(helper.make_tensor_value_info(last, FLOAT, None))


def wrap_in_loop(rng: Random, model: ModelProto) -> None:
    """The graph as the body of a loop of absurdly many turns."""
    body = GraphProto.FromString(model.graph.SerializeToString())
    if rng.random() < 0.3:
        del body.node[:]
    weights = list(body.initializer)
    del body.input[:], body.output[:]
    result = rng.choice([name for node in model.graph.node for name in node.output] or ["state"])
    body.input.extend(values("turn", "on", "state"))
    body.output.extend(values(*(("yes", rng.choice((result, "state")))), *[result] * rng.randrange(2)))
    node = helper.make_node(
        "Loop", ["count", "", rng.choice(["count", *(t.name for t in weights)])], ["final"], body=body
    )
    if len(body.output) == 3:
        node.output.append("stacked")
    model.graph.node.append(node)
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.initializer.append(
        numpy_helper.from_array(np.array(rng.choice((0, 1, 3, 3, 3, 40, 40, 1 << 62))), "count")
    )
    model.graph.output.extend(values(*node.output))


MEANING: tuple[Callable[[Random, ModelProto], None], ...] = (
    *[change_data] * 4,
    change_sizes,
    to_constant,
    to_input,
    change_external,
    *[repeat_node] * 2,
)


def mutant(index: int) -> bytes:
    """The mutant of that number, always the same."""
    rng = random.Random(index)
    data = seed(rng)
    level = rng.random()
    if level < 0.2:
        return bytes(rng.choice(BYTES)(rng, bytearray(data)))
    model = ModelProto.FromString(data)
    for _ in range(rng.choice((1, 1, 2, 3, 5))):
        rng.choice(STRUCTURE if rng.random() < 0.5 else MEANING)(rng, model)
    if rng.random() < 0.01:
        wrap_in_loop(rng, model)
    try:
        data = model.SerializeToString()
    except ValueError:  # nested past what protobuf writes
        return bytes(data)
    return bytes(flip(rng, bytearray(data))) if data and rng.random() < 0.05 else data
