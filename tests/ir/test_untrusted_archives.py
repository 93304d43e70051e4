"""Nothing but a whole file of ours is taken for one, and no file makes us do anything."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tersor.ir import archive
from tersor.ir.errors import ArchiveError, SignatureError
from tersor.ir.program import Program
from tersor.ir.shapes import shape_of

from .archives import Document, document_of, net, rewrite, seal, small, write

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
