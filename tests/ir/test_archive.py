"""A program comes back from its file as it was, and nothing but a whole file of ours is taken for one."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import random
import resource
import subprocess
import sys
import textwrap
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tersor.frontends.torch_export import trace
from tersor.ir import archive
from tersor.ir.errors import ArchiveError, SignatureError
from tersor.ir.origin import Origin
from tersor.ir.program import HistoryEntry, Program
from tersor.ir.shapes import SYMBOLIC_OPERATORS, shape_of
from tersor.ir.sparsity import NM, Channel, Unstructured

Document = dict[str, Any]


class Net(nn.Module):
    """Tied weights, several dtypes, infinities, a split, a nested result and sizes that depend on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.mix = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.slim = nn.Parameter(torch.randn(8, dtype=torch.bfloat16), requires_grad=False)
        self.register_buffer("mask", torch.tensor([True, False] * 4))
        self.register_buffer("bytes_", torch.arange(-4, 4, dtype=torch.int8))
        self.register_buffer("empty", torch.zeros(0, 8))

    def forward(self, tokens: Tensor, *, scale: float = 2.0) -> dict[str, Any]:
        hidden = self.mix(self.embedding(tokens)) * scale + self.bytes_
        hidden = self.norm(hidden.flatten(0, 1)).view(tokens.shape[0], -1, 8)
        left, right = hidden.split([3, 5], dim=2)
        masked = hidden.masked_fill(self.mask, -math.inf).softmax(-1)
        grown = torch.full((tokens.shape[0] * 2, 3), math.nan, dtype=torch.float64)
        dense = hidden.clone(memory_format=torch.contiguous_format).to(torch.bfloat16) + self.slim
        return {
            "logits": self.head(masked),
            "parts": (left, [right, dense]),
            "grown": grown,
            "e": self.get_buffer("empty") * 2,
        }


@cache
def traced_net() -> Program:
    torch.manual_seed(0)
    tokens = torch.randint(0, 11, (3, 5))
    return trace(Net().eval(), (tokens,), {"scale": 2.0}, dynamic={"tokens": {0: "batch"}}, name="Net")


def net() -> Program:
    return traced_net().copy()


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(x).relu()
        return result


@cache
def traced_small() -> Program:
    torch.manual_seed(0)
    return trace(Small(), (torch.randn(2, 3),))


def small() -> Program:
    return traced_small().copy()


def flat(program: Program, tokens: Tensor) -> list[Tensor]:
    return list(program.run([tokens]))


def document_of(path: Path) -> Document:
    with safe_open(path, framework="pt") as file:
        document: Document = json.loads(file.metadata()["tersor"])
    return document


def rewrite(
    path: Path, edit: Callable[[Document], object], tensors: Callable[[dict[str, Tensor]], object] = id
) -> Path:
    """Change a file as someone who knows the format would, with a digest that fits."""
    document, stored = document_of(path), load_file(path)
    edit(document)
    tensors(stored)
    return seal(path, json.dumps(document | {"sha256": "0" * 64}), stored)


def seal(path: Path, text: str, stored: dict[str, Tensor]) -> Path:
    save_file(stored, path, metadata={"tersor": text.replace('": "', '":"', 1)})
    data = path.read_bytes()
    return write(path, data.replace(b"0" * 64, hashlib.sha256(data).hexdigest().encode(), 1))


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# -- what comes back -------------------------------------------------------------------------------------------------


def test_a_program_comes_back_as_it_was(tmp_path: Path) -> None:
    program = net()
    program.history += (HistoryEntry("Prune", {"target": "0.5"}, ("8 channels", "2 kept")),)
    loaded = Program.load(program.save(tmp_path / "net.tersor"))
    assert str(loaded) == str(program)
    assert loaded.history == program.history
    assert loaded.signature == program.signature
    assert list(loaded.tensors()) == list(program.tensors())
    assert [(n.name, n.op, n.target) for n in loaded.graph.nodes] == [
        (n.name, n.op, n.target) for n in program.graph.nodes
    ]
    for batch in (1, 4):
        tokens = torch.randint(0, 11, (batch, 5))
        for ours, theirs in zip(flat(loaded, tokens), flat(program, tokens), strict=True):
            assert torch.equal(ours.nan_to_num(7), theirs.nan_to_num(7))


def test_arguments_come_back_with_their_types(tmp_path: Path) -> None:
    program = net()
    loaded = Program.load(program.save(tmp_path / "net.tersor"))
    for old, new in zip(program.graph.nodes, loaded.graph.nodes, strict=True):
        assert repr(new.args) == repr(old.args)
        assert repr(new.kwargs) == repr(old.kwargs)
        assert [type(value) for value in new.args] == [type(value) for value in old.args]
    text = json.dumps(document_of(tmp_path / "net.tersor")["nodes"])
    assert all(part in text for part in ('{"float": "-inf"}', '{"dtype": "bfloat16"}', '{"device": "cpu"}'))


def test_tied_tensors_stay_one_object(tmp_path: Path) -> None:
    loaded = Program.load(net().save(tmp_path / "net.tersor"))
    assert loaded.tensor("head.weight") is loaded.tensor("embedding.weight")
    stored = load_file(tmp_path / "net.tersor")
    assert ("head.weight" in stored) != ("embedding.weight" in stored)


def test_tensors_keep_kind_dtype_and_gradient(tmp_path: Path) -> None:
    program = net()
    loaded = Program.load(program.save(tmp_path / "net.tersor"))
    for name, old in program.tensors().items():
        new = loaded.tensor(name)
        assert type(new) is type(old), name
        assert (new.dtype, new.shape, new.requires_grad) == (old.dtype, old.shape, old.requires_grad), name
        assert torch.equal(new, old), name
    assert {"torch.bfloat16", "torch.bool", "torch.int8"} <= {str(t.dtype) for t in loaded.tensors().values()}


def test_origin_and_what_a_node_replaces_come_back(tmp_path: Path) -> None:
    program = small()
    relu = program.outputs[0]
    with program.graph.inserting_after(relu):
        new = program.call(torch.ops.aten.hardtanh.default, [relu.args[0]], like=relu)
    program.replace(relu, new)
    loaded = Program.load(program.save(tmp_path / "small.tersor"))
    origin = Origin.of(loaded.outputs[0])
    assert origin == Origin.of(new)
    assert origin is not None
    assert "relu" in origin.code
    assert loaded.outputs[0].meta["replaces"] == relu.name


def test_sparsity_comes_back(tmp_path: Path) -> None:
    program = small()
    program.set_tensor("linear.weight", torch.tensor([[0.0, 0, 0], [1, 0, 0]]))
    program.sparsity = {"linear.weight": Channel((0,)), "linear.bias": Unstructured(1.0)}
    assert Program.load(program.save(tmp_path / "s.tersor")).sparsity == program.sparsity


def test_tensors_that_share_memory_are_saved_each(tmp_path: Path) -> None:
    program = small()
    base = torch.randn(8)
    program.set_tensor("linear.weight", base[2:].reshape(2, 3))
    program.set_tensor("linear.bias", base[:2])
    loaded = Program.load(program.save(tmp_path / "s.tersor"))
    assert torch.equal(loaded.tensor("linear.weight"), base[2:].reshape(2, 3))
    assert torch.equal(loaded.tensor("linear.bias"), base[:2])


def test_a_transposed_tensor_is_saved_by_value(tmp_path: Path) -> None:
    program = small()
    value = torch.randn(3, 2).t()
    program.set_tensor("linear.weight", value)
    assert torch.equal(Program.load(program.save(tmp_path / "s.tersor")).tensor("linear.weight"), value)


def test_example_inputs_are_not_saved(tmp_path: Path) -> None:
    program = small()
    assert program.example is not None
    path = program.save(tmp_path / "s.tersor")
    assert program.example[0].numpy().tobytes() not in path.read_bytes()
    assert Program.load(path).example is None


def test_the_same_program_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = net().save(tmp_path / "a"), net().save(tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
    assert Program.load(first).save(second).read_bytes() == first.read_bytes()


def test_other_tools_read_the_tensors(tmp_path: Path) -> None:
    program = small()
    stored = load_file(program.save(tmp_path / "s.safetensors"))
    assert torch.equal(stored["linear.weight"], program.tensor("linear.weight"))


def test_a_fresh_process_without_the_class_loads_runs_and_prints_it(tmp_path: Path) -> None:
    """The text is the same whatever the order in which that process holds its sets."""
    program = net()
    tokens = torch.arange(10).reshape(2, 5)
    program.save(tmp_path / "net.tersor")
    torch.manual_seed(0)
    save_file({"logits": program(tokens, scale=2.0)["logits"]}, tmp_path / "expected.safetensors")
    code = """
        import torch
        from safetensors.torch import load_file
        from tersor.ir.program import Program
        program = Program.load("net.tersor")
        result = program(torch.arange(10).reshape(2, 5))
        assert torch.equal(result["logits"], load_file("expected.safetensors")["logits"])
        assert isinstance(result["parts"][1], list)
        print(program)
    """
    code = textwrap.dedent(code)
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == str(program)


# -- writing ---------------------------------------------------------------------------------------------------------


def _fails(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = small().save(tmp_path / "s.tersor")
    before = path.read_bytes()
    monkeypatch.setattr(os if step == "fsync" else Path, step, _fails)
    with pytest.raises(ArchiveError, match=r"could not be written: .*No space left"):
        net().save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the write itself fails part of the way."""
    path = small().save(tmp_path / "s.tersor")
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(ArchiveError, match="could not be written"):
            net().save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="could not be written"):
        small().save(tmp_path / "none" / "s.tersor")


def test_a_broken_program_is_not_written(tmp_path: Path) -> None:
    program = small()
    program.outputs[0].meta["plan"] = 1
    with pytest.raises(ArchiveError, match=r"was not written: annotations \['plan'\]") as caught:
        program.save(tmp_path / "s.tersor")
    assert caught.value.node == program.outputs[0].name
    assert not list(tmp_path.iterdir())


def test_a_dtype_that_the_format_lacks(tmp_path: Path) -> None:
    program = small()
    program.set_tensor("linear.bias", torch.zeros(2, dtype=torch.complex128))
    with pytest.raises(ArchiveError, match=r"'linear\.bias' cannot be saved[^$]*complex128"):
        program.save(tmp_path / "s.tersor")


def test_every_function_on_sizes_has_a_name_of_its_own() -> None:
    assert len({function.__name__ for function in SYMBOLIC_OPERATORS}) == len(SYMBOLIC_OPERATORS)


# -- what is not ours, or not whole ----------------------------------------------------------------------------------


def _torch_save(path: Path) -> None:
    torch.save({"a": torch.ones(2)}, path)


def _pickle(path: Path) -> None:
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)


def _plain_safetensors(path: Path) -> None:
    save_file({"a": torch.ones(2)}, path, metadata={"format": "pt"})


FOREIGN: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "folder": (lambda path: path.mkdir(), "cannot be read: Is a directory"),
    "missing": (lambda path: None, "cannot be read: No such file"),
    "torch.save": (_torch_save, "a zip archive"),
    "pickle": (_pickle, "a pickle"),
    "onnx": (lambda path: path.write_bytes(b"\x08\x0a\x12\x06tersor" + bytes(100)), "a protobuf"),
    "safetensors": (_plain_safetensors, "safetensors without a program"),
    "text": (lambda path: path.write_text("hello, this is not a program at all"), "is not a saved program"),
    "zeros": (lambda path: path.write_bytes(bytes(64)), "is not a saved program"),
    "huge header": (lambda path: path.write_bytes(b"\xff" * 8 + b"{}"), "is not a saved program"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_file_is_refused(tmp_path: Path, kind: str) -> None:
    make, expected = FOREIGN[kind]
    path = tmp_path / "foreign"
    make(path)
    with pytest.raises(ArchiveError, match=expected) as caught:
        Program.load(path)
    assert str(path) in str(caught.value)


def test_a_file_cut_short_at_any_length_is_refused(tmp_path: Path) -> None:
    path = small().save(tmp_path / "s.tersor")
    data = path.read_bytes()
    for length in [*range(40), *range(40, len(data), 97), len(data) - 1]:
        with pytest.raises(ArchiveError):
            Program.load(write(path, data[:length]))
    with pytest.raises(ArchiveError, match="cut short"):
        Program.load(write(path, data[: len(data) // 2]))
    with pytest.raises(ArchiveError):
        Program.load(write(path, data + b"\0"))


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = small().save(tmp_path / "s.tersor")
    data = path.read_bytes()
    chance = random.Random(0)
    start = data.find(b"sha256") - 40
    places = {*range(16), *range(start, start + 120), *range(len(data) - 8, len(data))}
    places |= set(chance.sample(range(len(data)), 250))
    for place in sorted(places):
        changed = bytearray(data)
        changed[place] ^= 1 << chance.randrange(8)
        with pytest.raises(ArchiveError):
            Program.load(write(path, bytes(changed)))


def test_a_file_of_a_newer_version(tmp_path: Path) -> None:
    path = rewrite(small().save(tmp_path / "s.tersor"), lambda document: document.update(version=2, nodes="unknown"))
    with pytest.raises(ArchiveError, match=r"(?s)newer version, tersor .* format 2, and .* up to 1.*upgrade tersor"):
        Program.load(path)


def test_damage_in_a_tensor_is_called_damage(tmp_path: Path) -> None:
    path = small().save(tmp_path / "s.tersor")
    data = path.read_bytes()
    with pytest.raises(ArchiveError, match="is damaged"):
        Program.load(write(path, data[:-1] + bytes([data[-1] ^ 1])))


# -- what an attacker would write ------------------------------------------------------------------------------------


def _call(document: Document) -> Document:
    found: Document = next(node for node in document["nodes"] if node["op"] == "call_function")
    return found


def _last(document: Document) -> Document:
    found: Document = document["nodes"][-2]
    return found


def _weight_row(document: Document) -> Document:
    found: Document = document["tensors"][0]
    return found


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def _rename_tensor(document: Document, name: str) -> None:
    _weight_row(document).update(name=name)


MALICIOUS: dict[str, tuple[Callable[[Document], object], str]] = {
    "a python function": (lambda d: _call(d).update(target="builtins.eval"), "calls 'builtins.eval'"),
    "a function on sizes, misspelt": (lambda d: _call(d).update(target="python.eval"), "calls 'python.eval'"),
    "a dunder": (lambda d: _call(d).update(target="aten.__class__"), "calls 'aten.__class__'"),
    "an attribute of a dunder": (lambda d: _call(d).update(target="aten.relu.__init__"), "calls 'aten.relu.__init__'"),
    "a foreign namespace": (lambda d: _call(d).update(target="prims.sin.default"), "calls 'prims.sin.default'"),
    "an unknown operator": (lambda d: _call(d).update(target="aten.nothing.default"), "calls 'aten.nothing.default'"),
    "an unknown overload": (lambda d: _call(d).update(target="aten.add.Nothing"), "calls 'aten.add.Nothing'"),
    "a file": (
        lambda d: _call(d).update(target="aten.from_file.default", args=["/etc/passwd"], kwargs={}),
        "does more than compute",
    ),
    "a write": (lambda d: _last(d).update(target="aten.relu_.default"), "does more than compute"),
    "a method": (lambda d: _call(d).update(op="call_method", target="numpy"), "cannot be call_method"),
    "a module": (lambda d: _call(d).update(op="call_module", target="x"), "cannot be call_module"),
    "code as a name": (lambda d: _call(d).update(name="x = print(1) #"), "not an identifier"),
    "code as an input": (lambda d: d["nodes"][0].update(target="x=print(1)"), "cannot be placeholder of"),
    "code as a default": (lambda d: d["nodes"][0].update(target="x, y=exit()"), "cannot be placeholder of"),
    "self as an input": (lambda d: d["nodes"][0].update(target="self"), "named self"),
    "code as a tensor": (lambda d: d["nodes"][1].update(target='a"),exit(),("'), "cannot be get_attr of"),
    "code as a keyword": (lambda d: _call(d).update(kwargs={"a=exit(),b": 1}), "a keyword is not an identifier"),
    "code as a tensor's name": (lambda d: _rename_tensor(d, "a b"), "not dotted identifiers"),
    "a method's name for a tensor": (lambda d: _rename_tensor(d, "forward"), "well-formed"),
    "a name twice": (lambda d: _last(d).update(name=d["nodes"][0]["name"]), "two nodes have one name"),
    "a tensor twice": (lambda d: d["tensors"].append(dict(d["tensors"][0])), "two tensors have one name"),
    "a tensor that is not there": (lambda d: d["tensors"].append({"name": "z", "same_as": "y"}), "well-formed"),
    "a tensor too many": (lambda d: d["tensors"].pop(), "does not name"),
    "a read of nothing": (lambda d: d["nodes"][1].update(target="none"), "does not hold"),
    "an undefined node": (lambda d: _call(d).update(args=[{"node": "none"}]), "not defined before it"),
    "a node in itself": (lambda d: _last(d).update(args=[{"node": _last(d)["name"]}]), "not defined before it"),
    "a later node": (lambda d: d["nodes"].insert(0, d["nodes"].pop(-2)), "not defined before it"),
    "an unknown dtype": (lambda d: _last(d).update(kwargs={"dtype": {"dtype": "float"}}), "not known: dtype"),
    "an unknown device": (lambda d: _last(d).update(kwargs={"d": {"device": "c\nd"}}), "not known: device"),
    "an unknown kind": (lambda d: _last(d).update(kwargs={"a": {"code": "1"}}), "not known: code"),
    "two kinds": (lambda d: _last(d).update(kwargs={"a": {"node": "x", "float": "1"}}), "well-formed"),
    "a huge number": (lambda d: _last(d).update(args=[10**30]), "range of 64 bits"),
    "a huge exponent": (
        lambda d: _last(d).update(target="python.pow", args=[10, 10**18]),
        "a power that no model needs",
    ),
    "depth": (lambda d: _last(d).update(args=_nested(400)), "well-formed|not known"),
    "no output": (lambda d: d["nodes"].pop(), "well-formed"),
    "two outputs": (lambda d: d["nodes"].append(d["nodes"][-1] | {"name": "output_1"}), "well-formed"),
    "no nodes": (lambda d: d.update(nodes=[]), "well-formed"),
    "nodes of another shape": (lambda d: d.update(nodes={"a": 1}), "well-formed"),
    "a missing part": (lambda d: d.pop("signature"), "well-formed"),
    "an unknown stage": (lambda d: d.update(stage="done"), "well-formed"),
    "an unknown pattern": (lambda d: d.update(sparsity={"linear.weight": {"pattern": "x"}}), "well-formed"),
    "a broken promise": (
        lambda d: d.update(sparsity={"linear.weight": {"pattern": "channel", "indices": [0]}}),
        "not sparse as promised",
    ),
    "an impossible promise": (
        lambda d: d.update(sparsity={"linear.weight": {"pattern": "n_m", "n": 1, "m": 0}}),
        "well-formed",
    ),
    "shapes that do not fit": (lambda d: _last(d).update(target="aten.mm.default"), "well-formed"),
    "a foreign format": (lambda d: d.update(format="onnx"), "is not a program"),
    "a version that is no number": (lambda d: d.update(version="2"), "well-formed"),
}


@pytest.mark.parametrize("kind", MALICIOUS)
def test_a_malicious_file_is_refused(tmp_path: Path, kind: str) -> None:
    edit, expected = MALICIOUS[kind]
    path = rewrite(small().save(tmp_path / "s.tersor"), edit)
    with pytest.raises(ArchiveError, match=expected):
        Program.load(path)


def test_rewriting_alone_is_not_what_is_refused(tmp_path: Path) -> None:
    program = small()
    path = rewrite(program.save(tmp_path / "s.tersor"), lambda document: document.update(name="renamed"))
    assert Program.load(path).name == "renamed"


def test_a_header_that_says_one_thing_twice(tmp_path: Path) -> None:
    path = small().save(tmp_path / "s.tersor")
    text = json.dumps(document_of(path) | {"sha256": "0" * 64})
    with pytest.raises(ArchiveError, match="names one thing twice"):
        Program.load(seal(path, text[:-1] + ', "name": "other"}', load_file(path)))


def test_deep_json_is_refused(tmp_path: Path) -> None:
    path = small().save(tmp_path / "s.tersor")
    text = json.dumps(document_of(path) | {"sha256": "0" * 64})
    deep = "[" * 200_000 + "]" * 200_000
    with pytest.raises(ArchiveError):
        Program.load(seal(path, f'{text[:-1]}, "deep": {deep}}}', load_file(path)))


def test_tensors_of_another_shape_are_refused(tmp_path: Path) -> None:
    def grow(tensors: dict[str, Tensor]) -> None:
        tensors["linear.weight"] = torch.zeros(2, 4)

    path = rewrite(small().save(tmp_path / "s.tersor"), lambda document: None, grow)
    with pytest.raises(ArchiveError, match="does not take these inputs"):
        Program.load(path)


def test_loading_runs_nothing_that_the_file_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither pickle nor eval nor an import happens, whatever operators the file has."""
    path = net().save(tmp_path / "net.tersor")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("code from a file")

    monkeypatch.setattr("pickle.load", refuse)
    monkeypatch.setattr("pickle.loads", refuse)
    monkeypatch.setattr("torch.load", refuse)
    monkeypatch.setattr("sympy.sympify", refuse)
    monkeypatch.setattr("builtins.eval", refuse)
    Program.load(path)


def test_a_loaded_program_does_not_depend_on_the_file(tmp_path: Path) -> None:
    program = small()
    path = program.save(tmp_path / "s.tersor")
    loaded = Program.load(path)
    write(path, bytes(path.stat().st_size))
    assert torch.equal(loaded.tensor("linear.weight"), program.tensor("linear.weight"))


def test_a_loaded_program_is_checked_and_shaped(tmp_path: Path) -> None:
    loaded = Program.load(net().save(tmp_path / "net.tersor"))
    loaded.verify()
    assert shape_of(loaded, loaded.outputs[0]) == ("batch", 5, 11)
    with pytest.raises(SignatureError):
        loaded(torch.zeros(2, 4, dtype=torch.int64))


def test_the_digest_is_of_the_whole_file(tmp_path: Path) -> None:
    path = small().save(tmp_path / "s.tersor")
    data, digest = path.read_bytes(), document_of(path)["sha256"]
    assert hashlib.sha256(data.replace(digest.encode(), b"0" * 64)).hexdigest() == digest
    assert document_of(path)["version"] == archive.VERSION


def test_n_of_m_comes_back(tmp_path: Path) -> None:
    program = small()
    program.set_tensor("linear.weight", torch.tensor([[1.0, 0, 0], [0, 2, 0]]))
    program.sparsity = {"linear.weight": NM(1, 3)}
    assert Program.load(program.save(tmp_path / "s.tersor")).sparsity == {"linear.weight": NM(1, 3)}
