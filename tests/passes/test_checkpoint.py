"""A stopped run goes on where it was and gives the same result; what is not to be trusted is not used."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from tersor.frontends.torch_export import trace
from tersor.ir.errors import PassError
from tersor.ir.program import Program
from tersor.passes.base import Pass, PassResult, Promise
from tersor.passes.checkpoint import plain, write_json
from tersor.passes.manager import PassManager
from tersor.passes.report import PipelineResult


@dataclass
class Output:
    """What the model returns, a class that no file holds."""

    y: Tensor


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Output:
        return Output(self.layer(x))


@cache
def traced() -> Program:
    torch.manual_seed(1)
    return trace(Net(), torch.randn(2, 3))


def net() -> Program:
    return traced().copy()


RAN: list[str] = []


@dataclass(frozen=True)
class Scale(Pass):
    promise: ClassVar[Promise] = Promise.APPROXIMATE

    factor: float
    fails: bool = False

    def run(self, program: Program) -> PassResult:
        RAN.append(f"scale {self.factor}")
        if self.fails:
            raise ValueError("stopped")
        program.set_tensor("layer.weight", program.tensor("layer.weight") * self.factor)
        return PassResult(program, modified=True, notes=(f"scaled by {self.factor}",))


def run(folder: Path, *factors: float, program: Program | None = None) -> tuple[PipelineResult, list[str]]:
    RAN.clear()
    result = PassManager([Scale(f) for f in factors], checkpoint=folder).run(program or net())
    return result, list(RAN)


def rows(result: PipelineResult) -> list[dict[str, Any]]:
    return [{**row, "seconds": 0} for row in result.report.to_json()]


def test_a_run_that_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole", 2.0, 3.0, 0.5)
    with pytest.raises(PassError, match="stopped"):
        PassManager([Scale(2.0), Scale(3.0), Scale(0.5, fails=True)], checkpoint=tmp_path / "part").run(net())
    resumed, ran = run(tmp_path / "part", 2.0, 3.0, 0.5)
    assert ran == ["scale 0.5"]
    assert str(resumed.program) == str(whole.program)
    assert resumed.program.history == whole.program.history
    assert rows(resumed) == rows(whole)
    x = torch.randn(4, 3)[:2]
    assert torch.equal(resumed.program(x).y, whole.program(x).y)


def test_a_finished_run_runs_nothing_and_returns_the_models_own_classes(tmp_path: Path) -> None:
    first, _ = run(tmp_path, 2.0, 3.0)
    again, ran = run(tmp_path, 2.0, 3.0)
    assert ran == []
    assert rows(again) == rows(first)
    assert isinstance(again.program(torch.randn(2, 3)), Output)
    assert again.program.example is not None


def test_more_passes_go_on_from_the_last(tmp_path: Path) -> None:
    run(tmp_path, 2.0)
    assert run(tmp_path, 2.0, 3.0)[1] == ["scale 3.0"]


def test_a_changed_option_runs_from_there_on(tmp_path: Path) -> None:
    run(tmp_path, 2.0, 3.0, 0.5)
    assert run(tmp_path, 2.0, 4.0, 0.5)[1] == ["scale 4.0", "scale 0.5"]
    assert run(tmp_path, 2.0, 4.0, 0.5)[1] == []


def test_another_program_starts_anew(tmp_path: Path) -> None:
    run(tmp_path, 2.0)
    other = net()
    other.set_tensor("layer.bias", torch.ones(3))
    assert run(tmp_path, 2.0, program=other)[1] == ["scale 2.0"]


def _truncate(folder: Path) -> None:
    file = folder / "02-scale.tersor"
    file.write_bytes(file.read_bytes()[:-10])


def _flip(folder: Path) -> None:
    file = folder / "02-scale.tersor"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))


def _swap(folder: Path) -> None:
    (folder / "02-scale.tersor").write_bytes((folder / "00-given.tersor").read_bytes())


def _remove(folder: Path) -> None:
    (folder / "02-scale.tersor").unlink()


@pytest.mark.parametrize("damage", [_truncate, _flip, _swap, _remove])
def test_a_damaged_file_is_not_used_and_the_one_before_it_is(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    whole, _ = run(tmp_path, 2.0, 3.0)
    damage(tmp_path)
    again, ran = run(tmp_path, 2.0, 3.0)
    assert ran == ["scale 3.0"]
    assert rows(again) == rows(whole)


@pytest.mark.parametrize("text", ["", "{", "3", "[3]", '{"a": 1}', '[{"fingerprint": "x"}]', "\udcff"])
def test_a_damaged_list_starts_anew(tmp_path: Path, text: str) -> None:
    run(tmp_path, 2.0)
    (tmp_path / "pipeline.json").write_bytes(text.encode(errors="surrogateescape"))
    assert run(tmp_path, 2.0)[1] == ["scale 2.0"]


def test_a_row_that_was_tampered_with_starts_anew(tmp_path: Path) -> None:
    run(tmp_path, 2.0)
    file = tmp_path / "pipeline.json"
    entries = json.loads(file.read_text())
    del entries[0]["row"]["notes"]
    file.write_text(json.dumps(entries))
    assert run(tmp_path, 2.0)[1] == ["scale 2.0"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PassError, match="cannot hold checkpoints"):
        run(tmp_path / "file", 2.0)


SCRIPT = """
    import importlib.util, os, signal, sys
    spec = importlib.util.spec_from_file_location({name!r}, {file!r})
    t = importlib.util.module_from_spec(spec)
    sys.modules[{name!r}] = t
    spec.loader.exec_module(t)
    first = t.Scale.run
    def run(self, program):
        if self.factor == 0.5:
            os.kill(os.getpid(), signal.SIGKILL)
        return first(self, program)
    t.Scale.run = run
    t.run(t.Path({folder!r}), 2.0, 3.0, 0.5)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_process_leaves_a_folder_to_go_on_from(tmp_path: Path) -> None:
    script = textwrap.dedent(SCRIPT).format(name=__name__, file=__file__, folder=str(tmp_path))
    process = subprocess.run([sys.executable, "-c", script], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert process.returncode == -signal.SIGKILL
    assert len(json.loads((tmp_path / "pipeline.json").read_text())) == 2
    resumed, ran = run(tmp_path, 2.0, 3.0, 0.5)
    assert ran == ["scale 0.5"]
    assert len(resumed.report.rows) == 4


def test_options_are_told_apart_by_value() -> None:
    @dataclass(frozen=True)
    class Options:
        data: Any

    pairs = [(1, 1.0), (("a", "b"), ("a, b",)), ([1], (1,)), ({"a": 1}, {"a": 2}), (len, max)]
    pairs += [(tuple(range(100)), tuple(range(101))), (torch.zeros(2), torch.ones(2)), (None, "None")]
    for left, right in pairs:
        assert repr(plain(Options(left))) != repr(plain(Options(right)))
    assert repr(plain({"b", "a"})) == repr(plain({"a", "b"}))
    assert plain(iter([1])) == plain(iter([2]))


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    write_json(file, [1])
    with pytest.raises(TypeError):
        write_json(file, object())
    assert json.loads(file.read_text()) == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]
