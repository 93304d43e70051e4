"""Compression in steps: how far each goes, what is recorded, where it stops, and that it goes on after a stop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

import tersor as ts
from tersor.ir.sparsity import NM, Unstructured


def network() -> ts.Program:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    return ts.trace(model.eval(), (torch.randn(2, 8),), dynamic={"input": {0: "batch"}})


LOG: list[float] = []


@dataclass(frozen=True)
class Look(ts.Pass):
    """Stands for tuning: writes down the parameters that it is given."""

    promise: ClassVar[ts.Promise] = ts.Promise.TRAINED

    stop_at: int = 0

    def run(self, program: ts.Program) -> ts.PassResult:
        LOG.append(program.cost().parameters)
        if len(LOG) == self.stop_at:
            raise KeyboardInterrupt
        return ts.PassResult(program, modified=False)


@pytest.fixture(autouse=True)
def empty_log() -> None:
    LOG.clear()


@pytest.mark.parametrize("pace", ts.Pace)
def test_each_step_goes_as_far_as_its_pace_says(pace: ts.Pace) -> None:
    program = network()
    whole = program.cost().parameters
    ts.Gradually(ts.PruneChannels(ts.Parameters(0.2)), Look(), steps=4, pace=pace)(program)
    shares = [0.2 ** (t / 4) if pace is ts.Pace.CONSTANT else 0.2 + 0.8 * (1 - t / 4) ** 3 for t in range(1, 5)]
    assert [count / whole for count in LOG] == pytest.approx(shares, rel=0.03)


def test_limits_are_those_of_the_program_given() -> None:
    pruned = ts.Gradually(ts.PruneChannels(ts.Parameters(0.4), ts.Random(), least=0.5), steps=3)(network())
    assert pruned.tensor("0.weight").shape[0] >= 32
    assert pruned.tensor("2.weight").shape[0] >= 32


def test_sparsity_in_steps() -> None:
    sparse = ts.Gradually(ts.Sparsify(Unstructured(0.1)), steps=3)(network())
    assert sparse.sparsity["2.weight"] == Unstructured(0.1)
    assert ts.Gradually(ts.Sparsify(NM(1, 4)), steps=3)(network()).sparsity["2.weight"] == NM(1, 4)


def test_the_score_of_every_step_is_in_the_report() -> None:
    scores = iter([0.9, 0.8, 0.7])
    step = ts.Gradually(ts.PruneChannels(ts.Parameters(0.5)), steps=3, evaluate=lambda program: next(scores))
    row = ts.PassManager([step]).run(network()).report.rows[-1]
    assert [note.split("score ")[1][:3] for note in row.notes] == ["0.9", "0.8", "0.7"]


def test_below_the_floor_the_step_before_is_the_result() -> None:
    program = network()
    scores = iter([0.9, 0.8, 0.2])
    step = ts.Gradually(
        ts.PruneChannels(ts.Parameters(0.3)), Look(), steps=3, evaluate=lambda program: next(scores), floor=0.5
    )
    result = ts.PassManager([step]).run(program)
    assert result.program.cost().parameters == LOG[1]
    assert "below the floor" in result.report.rows[-1].notes[-1]
    with pytest.raises(ts.TersorError, match="the first step is below the floor"):
        ts.Gradually(ts.PruneChannels(), evaluate=lambda program: 0.0, floor=0.5)(program)
    with pytest.raises(ts.TersorError, match="needs a score"):
        ts.Gradually(floor=0.5)


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path) -> None:
    program = network()
    prune = ts.PruneChannels(ts.Parameters(0.2))
    with pytest.raises(KeyboardInterrupt):
        ts.Gradually(prune, Look(stop_at=3), steps=4, checkpoint=tmp_path)(program)
    LOG.clear()
    resumed = ts.Gradually(prune, Look(), steps=4, checkpoint=tmp_path)(program)
    assert len(LOG) == 4, "options differ, so nothing is taken over"
    LOG.clear()
    again = ts.Gradually(prune, Look(), steps=4, checkpoint=tmp_path)(program)
    assert LOG == [], "all steps are done"
    x = torch.randn(3, 8)
    assert torch.equal(again(x), resumed(x))


def test_a_run_stopped_between_steps_ends_as_one_that_was_not(tmp_path: Path) -> None:
    program = network()
    tune = Look()
    step = ts.Gradually(ts.PruneChannels(ts.Parameters(0.2)), tune, steps=4, checkpoint=tmp_path)
    whole = step(program)
    last = tmp_path / "steps.json"
    text = last.read_text()
    import json

    data = json.loads(text)
    data["steps"], data["file"] = data["steps"][:2], "step-02.tersor"
    last.write_text(json.dumps(data))
    LOG.clear()
    resumed = step(program)
    assert len(LOG) == 2
    x = torch.randn(3, 8)
    assert torch.equal(resumed(x), whole(x))
    (tmp_path / "step-04.tersor").write_bytes(b"damaged")
    LOG.clear()
    assert torch.equal(step(program)(x), whole(x)), "a damaged file is not used"
    assert len(LOG) == 4
