"""Small models of many operators, from which `mutants.py` makes hostile ones."""

from __future__ import annotations

import importlib
import pkgutil
import random
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.backend.test.case import node as suite

from tersor.frontends.onnx.registry import RULES

FLOAT = TensorProto.FLOAT
SLOW_TO_MAKE = ("averagepool", "lppool", "maxpool")
"""Files of ONNX's suite that compute for seconds when they are imported."""


def made(
    nodes: Sequence[NodeProto],
    inputs: dict[str, Sequence[int | str]],
    weights: dict[str, Any] | None = None,
    opset: int = 21,
    **options: Any,
) -> ModelProto:
    """A model whose outputs are those of its last node."""
    weights = {name: np.asarray(value) for name, value in (weights or {}).items()}
    graph = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info(name, FLOAT, list(shape)) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in nodes[-1].output],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], **options)


def values(*names: str) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(name, FLOAT, None) for name in names]


def floats(*numbers: float) -> Any:
    return np.array(numbers, np.float32)


def loop() -> ModelProto:
    nodes = [helper.make_node("Mul", ["s", "w"], ["next"]), helper.make_node("Identity", ["c"], ["on"])]
    body = helper.make_graph(nodes, "body", values("i", "c", "s"), values("on", "next", "next"))
    return made(
        [helper.make_node("Loop", ["n", "", "x"], ["last", "all"], body=body)], {"x": [2]}, {"n": 3, "w": [2.0]}
    )


def branches() -> ModelProto:
    then, other = (helper.make_graph([helper.make_node(o, ["x"], ["r"])], o, [], values("r")) for o in ("Relu", "Neg"))
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["columns"]),
        helper.make_node("Equal", ["columns", "one"], ["c"]),
        helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other),
    ]
    return made(nodes, {"x": ["n", 3]}, {"one": 1})


def functions() -> ModelProto:
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("my", 1)]
    leaf = helper.make_node("LeakyRelu", ["a"], ["b"])
    leaf.attribute.append(AttributeProto(name="alpha", ref_attr_name="slope", type=AttributeProto.FLOAT))
    calls = [helper.make_node("Leaf", ["a"], ["t"], domain="my", slope=0.5)]
    calls.append(helper.make_node("Leaf", ["t"], ["b"], domain="my", slope=0.25))
    inner = helper.make_function("my", "Leaf", ["a"], ["b"], [leaf], opsets, attributes=["slope"])
    outer = helper.make_function("my", "Twice", ["a"], ["b"], calls, opsets)
    model = made([helper.make_node("Twice", ["x"], ["y"], domain="my")], {"x": ["n", 2]}, functions=[inner, outer])
    model.opset_import.append(helper.make_opsetid("my", 1))
    return model


def quantized() -> ModelProto:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["qx"]),
        helper.make_node("DequantizeLinear", ["qx", "sx", "zx"], ["dx"]),
        helper.make_node("DequantizeLinear", ["qw", "sw", "zw"], ["dw"], axis=0),
        helper.make_node("Conv", ["dx", "dw"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Resize", ["c", "", "scales"], ["r"], mode="nearest", nearest_mode="floor",
                         coordinate_transformation_mode="asymmetric"),
        helper.make_node("Pad", ["r", "pads"], ["p"], mode="reflect"),
        helper.make_node("Slice", ["p", "start", "end", "axes", "steps"], ["y"]),
    ]  # fmt: skip
    grid = {"sx": np.float32(0.1), "zx": np.uint8(3), "sw": floats(0.1, 0.2), "zw": np.zeros(2, np.int8)}
    places = {"scales": floats(1, 1, 2, 2), "pads": [0, 0, 1, 1, 0, 0, 1, 1], "start": [-1], "end": [-9]}
    more = {"axes": [3], "steps": [-2], "qw": np.ones((2, 3, 3, 3), np.int8)}
    return made(nodes, {"x": ["n", 3, 8, 8]}, {**grid, **places, **more})


def shapes() -> ModelProto:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Mul", ["n", "k"], ["m"]),
        helper.make_node("Div", ["m", "k"], ["d"]),
        helper.make_node("Concat", ["d", "k", "rest"], ["to"], axis=0),
        helper.make_node("Reshape", ["x", "to"], ["r"]),
        helper.make_node("Expand", ["r", "large"], ["e"]),
        helper.make_node("Tile", ["e", "times"], ["t"]),
        helper.make_node("Split", ["t", "parts"], ["a", "b"], axis=2),
        helper.make_node("Range", ["lo", "hi", "by"], ["g"]),
        helper.make_node("ConstantOfShape", ["k"], ["f"], value=numpy_helper.from_array(np.array([2], np.float32))),
        helper.make_node("Add", ["a", "f"], ["y"]),
        helper.make_node("Unsqueeze", ["y", "zero"], ["u"]),
        helper.make_node("Sum", ["u", "b", "g"], ["z"]),
    ]
    sizes = {"zero": [0], "k": [3], "rest": [-1], "large": [1, 3, 4], "times": [1, 1, 2], "parts": [4, 4]}
    numbers = {"lo": np.float32(0), "hi": np.float32(4), "by": np.float32(1)}
    return made(nodes, {"x": ["n", 12]}, {**sizes, **numbers})


def dense() -> ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["a"]),
        helper.make_node("LayerNormalization", ["a", "g", "b"], ["l"]),
        helper.make_node("Gemm", ["l", "w", "b"], ["y"], transB=1, alpha=0.5),
        helper.make_node("Einsum", ["y", "w"], ["z"], equation="ij,kj->ik"),
    ]
    weights = {"w": np.ones((4, 4), np.float32), "b": np.ones(4, np.float32), "g": np.ones(4, np.float32)}
    return made(nodes, {"x": ["n", 4]}, weights)


def beside() -> ModelProto:
    """Its weight lies in weights.bin, which every mutant finds beside it."""
    model = made([helper.make_node("Add", ["x", "w"], ["y"])], {"x": [4]}, {"w": np.zeros(4, np.float32)})
    (tensor,) = model.graph.initializer
    onnx.external_data_helper.set_external_data(tensor, "weights.bin", offset=8, length=16)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    return model


def from_package() -> Iterator[ModelProto]:
    """Models that ship in the onnx package, those of opsets that are not read at a later one."""
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data"
    for path in sorted(folder.glob("*/**/*.onnx")):
        if path.stat().st_size < 60_000:
            model = onnx.load(path)
            for entry in model.opset_import:
                entry.version = max(entry.version, 13)
            yield model


def made_tensor(rng: random.Random, name: str) -> TensorProto:
    """A small tensor of any type, with values that mean something as sizes, axes or data."""
    shape = [rng.choice((0, 1, 2, 2, 3, 4)) for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 4, 5)))]
    kind = rng.choice(("int64", "int64", "float32", "float32", "float64", "int32", "uint8", "int8", "bool", "float16"))
    low, high = rng.choice(((0, 2), (1, 4), (-3, 4), (1, 4), (-(1 << 62), 1 << 62)))
    array = np.array([rng.randrange(low, high) for _ in range(int(np.prod(shape)))]).reshape(shape)
    with np.errstate(all="ignore"):
        return numpy_helper.from_array(array.astype(kind), name)


def of_one_node() -> Iterator[ModelProto]:
    """A model for each operator that has a rule or is defined by others, its inputs constants: so it is computed."""
    schemas = {(schema.domain, schema.name): schema for schema in onnx.defs.get_all_schemas()}
    for domain, name in sorted({*RULES, *schemas}):
        schema = schemas.get((domain, name))
        count = min(schema.max_input, 6) if schema else 8
        names = [f"i{place}" for place in range(max(count, 1))]
        outputs = [f"o{place}" for place in range(min(schema.min_output, 4) if schema else 1)] or ["o"]
        model = made([helper.make_node(name, names, outputs, domain=domain)], {}, opset=23)
        rng = random.Random(name)
        model.graph.initializer.extend(made_tensor(rng, text) for text in names)
        if domain:
            model.opset_import.append(helper.make_opsetid(domain, 1))
        yield model


def from_suite() -> Iterator[ModelProto]:
    """Cases of ONNX's suite with their data: as they are, their sizes and axes constants, and all constants."""
    prefix = f"{suite.__name__}."
    for module in pkgutil.walk_packages(suite.__path__, prefix):
        if not module.ispkg and module.name.removeprefix(prefix) not in SLOW_TO_MAKE:
            np.random.seed(0)  # what the suite draws its data from, so that a mutant stays the same
            importlib.import_module(module.name)
    for case in suite._NodeTestCases:
        for keep in (lambda array: True, lambda array: array.ndim > 1, lambda array: False):
            model = ModelProto.FromString(case.model.SerializeToString())
            for value, array in zip(case.model.graph.input, case.data_sets[0][0], strict=True):
                if isinstance(array, np.ndarray) and not keep(array) and array.dtype.kind != "O":
                    model.graph.initializer.append(numpy_helper.from_array(array, value.name))
            if model.ByteSize() < 20_000:
                yield model


@cache
def seeds() -> tuple[list[bytes], ...]:
    """Groups of models; each group has as many mutants."""
    own = [loop(), branches(), functions(), quantized(), shapes(), dense(), beside()]
    groups = (own, from_package(), of_one_node(), from_suite())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tuple([model.SerializeToString() for model in group] for group in groups)


def seed(rng: random.Random) -> bytes:
    return rng.choice(rng.choice(seeds()))
