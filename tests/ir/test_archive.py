"""A program comes back from its file as it was, and a file is written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
import textwrap
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tersor.frontends.torch_export import trace
from tersor.ir.errors import ArchiveError
from tersor.ir.origin import Origin
from tersor.ir.program import HistoryEntry, Program
from tersor.ir.shapes import SYMBOLIC_OPERATORS
from tersor.ir.sparsity import NM, Channel, Unstructured

from .archives import document_of, flat, net, small

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


def test_n_of_m_comes_back(tmp_path: Path) -> None:
    program = small()
    program.set_tensor("linear.weight", torch.tensor([[1.0, 0, 0], [0, 2, 0]]))
    program.sparsity = {"linear.weight": NM(1, 3)}
    assert Program.load(program.save(tmp_path / "s.tersor")).sparsity == {"linear.weight": NM(1, 3)}


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


def test_names_of_any_alphabet_are_saved(tmp_path: Path) -> None:
    model = nn.Sequential(OrderedDict([("größe", nn.Linear(2, 2)), ("e\u0301", nn.Linear(2, 2))]))
    program = trace(model, torch.ones(1, 2))
    again = Program.load(program.save(tmp_path / "program.tersor"))
    assert set(again.tensors()) == {"größe.weight", "größe.bias", "\u00e9.weight", "\u00e9.bias"}
    assert torch.equal(again(torch.ones(1, 2)), model(torch.ones(1, 2)))


def test_a_file_can_be_read_by_whom_any_new_file_can(tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    path = trace(nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path / "program.tersor")
    assert path.stat().st_mode == (tmp_path / "new").stat().st_mode
