"""Files made to harm, as `test_hostile` has graphs; the mutants of `fuzz.py` are run at the end."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, NodeProto, TensorProto, helper

from tersor.frontends.onnx import model_file
from tersor.frontends.onnx.load import load_onnx
from tersor.frontends.onnx.wire import holds_at_most
from tersor.ir.errors import ArchiveError, TraceError

from .hostile import FLOAT, build, floats, load, node, operators, refusal
from .hostile import limited as limited

HERE = Path(__file__).parent
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
MUTANTS = 1500
MANY = 50_000


# -- Data beside the file ----------------------------------------------------------------------------------------------


def external(location: str, shape: Sequence[int] = (4,), **fields: str) -> onnx.ModelProto:
    tensor = TensorProto(name="w", data_type=FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **fields}.items():
        tensor.external_data.add(key=key, value=value)
    model = build([node("Conv", "x w")], {"x": ["n", 1, "size"]})
    model.graph.initializer.append(tensor)
    return model


@pytest.mark.parametrize(
    "location",
    ["/dev/zero", "/dev/stdin", "/etc/passwd", "../secret.bin", "folder/../../secret.bin", "link.bin", "out/secret.bin",
     "", ".", "..", "folder", "fifo", "circle.bin", "null\0null", "n" * 5000, "absent.bin", "zero.bin",
     "/proc/self/mem", "weights.bin/", "weights.bin\0", "file:///etc/passwd", "~/x"],
)  # fmt: skip
def test_data_anywhere_else(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "folder").mkdir(parents=True)
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    (folder / "weights.bin").write_bytes(bytes(64))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "out").symlink_to(tmp_path)
    (folder / "zero.bin").symlink_to("/dev/zero")
    (folder / "circle.bin").symlink_to("circle.bin")
    os.mkfifo(folder / "fifo")
    if location == "weights.bin/":
        load(external(location, (4, 1, 1)), folder)
    else:
        refusal(external(location, (4, 1, 1)), folder, "'w'", "y")


@pytest.mark.parametrize(
    "fields",
    [
        {"offset": "60"},
        {"offset": "-4"},
        {"offset": str(1 << 62)},
        {"offset": "9" * 4000},
        {"offset": "1e1"},
        {"offset": "٣"},
        {"length": "15"},
        {"length": "0"},
        {"length": str(1 << 62)},
        {"offset": ""},
    ],
)
def test_data_at_a_place_that_is_not_there(fields: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(64))
    refusal(external("weights.bin", (4, 1, 1), **fields), tmp_path, "'w'", "y")


def test_data_at_any_offset(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"\0" * 13 + floats(1, 2, 3, 4).tobytes())
    program = load(external("weights.bin", (4, 1, 1), offset="13"), tmp_path)
    assert program.tensor("w").flatten().tolist() == [1, 2, 3, 4]


def told_by(command: Sequence[str]) -> str:
    """What a process of its own prints, which has no limit of ours."""
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (most, most)),
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


MEASURED = """
import resource, sys
from tersor.frontends.onnx.load import load_onnx
from tersor.frontends.onnx.wire import holds_at_most
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
program = load_onnx(sys.argv[1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, program.tensor("w").numel())
"""


@pytest.mark.slow
@pytest.mark.parametrize("step", [node("Conv", "x w"), node("Gemm", "x w", transB=1), node("Gather", "w i")])
def test_three_gigabytes_beside_the_file_take_no_memory(step: NodeProto, tmp_path: Path) -> None:
    """They are mapped: a hole in a file takes no disk, and what nobody reads no memory."""
    shape = {"Conv": (1 << 18, 1 << 10, 3), "Gemm": (3 << 18, 1 << 10), "Gather": (3 << 18, 1 << 10)}[step.op_type]
    model = external("sparse.bin", shape, length=str(3 << 30))
    model.graph.node[0].CopyFrom(step)
    sizes: list[int | str | None] = ["n", 1 << 10, 8]
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", FLOAT, sizes[: len(shape)]))
    model.graph.input.append(helper.make_tensor_value_info("i", TensorProto.INT64, ["m"]))
    with (tmp_path / "sparse.bin").open("wb") as file:
        file.truncate(3 << 30)
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    grown, elements = map(int, told_by([sys.executable, "-c", MEASURED, str(tmp_path / "net.onnx")]).split())
    assert elements == 3 << 28
    assert grown < 100 << 10


# -- Files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "fifo", "device", "absent", "null", "long", "circle", "large"])
def test_a_path_that_is_no_model(kind: str, tmp_path: Path) -> None:
    path = {"device": Path("/dev/zero"), "null": Path("a\0b"), "long": tmp_path / ("n" * 5000)}.get(
        kind, tmp_path / kind
    )
    makers: dict[str, Callable[[], object]] = {
        "folder": path.mkdir,
        "fifo": lambda: os.mkfifo(path),
        "circle": lambda: path.symlink_to(path),
    }
    makers.get(kind, lambda: None)()
    if kind == "large":
        with path.open("wb") as file:
            file.truncate(5 << 30)
    with pytest.raises(ArchiveError) as raised:
        load_onnx(path)
    assert str(path) in str(raised.value)


def field(number: int, content: bytes) -> bytes:
    """A field of a message as it is serialized, for what protobuf does not write."""
    length, size = b"", len(content)
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


@pytest.mark.parametrize("number", [1, 5, 11, 13])
def test_millions_of_nothings(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes, tensors and inputs of two bytes each take a hundred of memory, each. Here a 32nd of what is refused."""
    monkeypatch.setattr(model_file, "_FREE_MESSAGES", model_file._FREE_MESSAGES >> 5)
    (tmp_path / "net.onnx").write_bytes(field(7, field(number, b"") * (1 << 17)))
    with pytest.raises(ArchiveError, match=r"net\.onnx holds too many messages"):
        load_onnx(tmp_path / "net.onnx")


def messages_in(message: Any) -> int:
    nested = [value for field, value in message.ListFields() if field.message_type is not None]
    items = [item for value in nested for item in (value if hasattr(value, "add") else [value])]
    return len(items) + sum(map(messages_in, items))


@pytest.mark.parametrize("path", sorted(LIGHT.glob("*.onnx")), ids=lambda path: path.stem)
def test_messages_are_counted_without_parsing(path: Path) -> None:
    data = path.read_bytes()
    count = messages_in(onnx.ModelProto.FromString(data))
    assert holds_at_most(data, count)
    assert not holds_at_most(data, count - 1)


def test_a_graph_in_a_graph_in_a_graph(tmp_path: Path) -> None:
    """Past what protobuf reads."""
    graph = b""
    for _ in range(5000):
        graph = field(1, field(5, field(6, graph)))
    (tmp_path / "net.onnx").write_bytes(field(7, graph))
    with pytest.raises(ArchiveError, match=r"net\.onnx"):
        load_onnx(tmp_path / "net.onnx")


def test_a_reference_to_an_attribute_that_is_one_to_itself(tmp_path: Path) -> None:
    step = node("LeakyRelu", "x")
    step.attribute.append(AttributeProto(name="alpha", ref_attr_name="alpha", type=AttributeProto.FLOAT))
    assert operators(load(build([step], {"x": [2]}), tmp_path)) == ["leaky_relu.default"]


@pytest.mark.parametrize("kind", list(TensorProto.DataType.values()))
def test_a_constant_of_every_type_with_data_of_another(kind: int, tmp_path: Path) -> None:
    model = build([node("Identity", "w")], {}, weights={"w": np.ones((2, 2), np.float32)})
    for field in ("raw_data", "float_data", "int32_data", "string_data"):
        tensor = model.graph.initializer[0]
        tensor.CopyFrom(TensorProto(name="w", data_type=kind, dims=[5, 7]))
        filled: dict[str, Any] = {"raw_data": b"\1\2\3", "string_data": [b"a"]}
        value = filled.get(field, [1] * 5)
        if field == "raw_data":
            tensor.raw_data = value
        else:
            getattr(tensor, field).extend(value)
        with pytest.raises(TraceError, match=r"net\.onnx: [\s\S]*"):
            load(model, tmp_path)


# -- Mutants -----------------------------------------------------------------------------------------------------------


def mutants(first: int, count: int, *options: str) -> None:
    """None of the mutants does what no file may make us do."""
    command = [sys.executable, str(HERE / "fuzz.py"), str(first), str(count), *options]
    *wrong, last = map(json.loads, told_by(command).splitlines())
    assert not wrong, "\n".join(f"{entry['mutant']}: {entry['wrong']}" for entry in wrong)
    counts = last["counts"]
    assert sum(counts.values()) == count
    assert counts["refused"] > count // 2
    assert counts["loaded"] + counts["run"] > count // 20


def test_mutants() -> None:
    mutants(0, MUTANTS, "--work", "4000")


@pytest.mark.slow
def test_many_mutants() -> None:
    mutants(MUTANTS, MANY)
