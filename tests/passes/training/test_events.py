"""Several things in one run: prune, distill and quantize while training goes on, each step's contract checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch.nn import functional as F

import tersor as ts
from tersor.ir.errors import PassError, TersorError, TrainingError
from tersor.ir.sparsity import Pattern, Unstructured
from tersor.passes.base import Pass, PassResult, Promise
from tersor.passes.training.events import At

from . import networks

X, Y = networks.data(256)
TEST_X, TEST_Y = networks.data(256, seed=2)


def batches() -> ts.ShuffledBatches:
    return ts.ShuffledBatches(X, Y, size=32)


def training(**options: Any) -> ts.Training:
    return ts.Training(**{"epochs": 6, "learning_rate": 5e-3, "progress": False, **options})


@pytest.fixture(scope="module")
def learned() -> ts.Program:
    """The float program, trained."""
    options = training(epochs=25, learning_rate=0.02)
    return ts.PassManager([ts.Finetune(batches(), F.cross_entropy, training=options)]).run(networks.program()).program


def run(step: Pass, program: ts.Program) -> ts.Program:
    return ts.PassManager([step], progress=False).run(program).program


def score(program: Any) -> float:
    return networks.accuracy(program(TEST_X), TEST_Y)


def size(program: ts.Program) -> int:
    return sum(parameter.numel() for parameter in program.parameters().values())


def prune(keep: float) -> ts.PruneChannels:
    return ts.PruneChannels(ts.Parameters(keep), ts.Taylor([(X, Y)], F.cross_entropy))


def joint(options: ts.Training) -> ts.TrainQuantized:
    return ts.TrainQuantized(
        batches(), F.cross_entropy, ts.INT4, training=options, events=(At(0.1, prune(0.6)),), start=0.5
    )


def test_pruned_distilled_and_quantized_in_one_run(learned: ts.Program, tmp_path: Path) -> None:
    together = run(joint(training(epochs=8)), learned)
    notes = together.history[-1].notes
    steps = [note.split(":")[0] + note.split(":")[1] for note in notes if note.startswith("step")]
    assert steps[0] == "step 6 prune_channels"
    assert "step 32 insert_fake_quant" in steps
    assert "teacher itself" in together.history[-1].options["distillation"]
    assert together.stage is ts.Stage.FAKE_QUANT
    assert size(together) < 0.65 * size(learned)
    assert score(together) > score(learned) - 0.05
    assert score(together) > score(run(ts.Quantize(ts.INT4, calibration=[X]), run(prune(0.6), learned)))
    assert ts.lower(together, target="onnxruntime", out=tmp_path).report.integer_share == 1.0


def test_the_teacher_is_the_program_before_it_was_pruned(learned: ts.Program) -> None:
    """Without a loss on targets, only what the whole program says can bring the pruned one back to it."""
    step = ts.TrainQuantized(
        ts.ShuffledBatches(X, size=32), None, training=training(), events=(At(0, prune(0.4)),), start=0.5
    )

    def apart(program: ts.Program) -> float:
        return F.kl_div(program(TEST_X).log_softmax(1), learned(TEST_X).softmax(1), reduction="batchmean").item()

    assert apart(run(step, learned)) < apart(run(prune(0.4), learned)) / 2


def test_a_killed_joint_run_goes_on_to_the_same_bits(learned: ts.Program, tmp_path: Path) -> None:
    """Killed after pruning and before quantization, and again after both."""
    whole = run(joint(training(epochs=1)), learned)

    class KilledError(Exception):
        pass

    for stops in (4, 7):

        def stopping(logits: torch.Tensor, labels: torch.Tensor, calls: list[int] = [], last: int = stops) -> Any:  # noqa: B006  # a counter
            calls.append(1)
            if len(calls) == last:
                raise KilledError
            return F.cross_entropy(logits, labels)

        options = training(epochs=1, checkpoint=tmp_path / str(stops), checkpoint_every=1)
        killed = ts.TrainQuantized(
            batches(), stopping, ts.INT4, training=options, events=(At(0.1, prune(0.6)),), start=0.5
        )
        with pytest.raises(PassError, match="KilledError"):
            run(killed, learned)
        again = run(joint(options), learned)
        assert any(f"resumed at step {stops - 1}" in note for note in again.history[-1].notes)
        assert networks.same(again, whole)


@pytest.mark.parametrize("kind", ["finetune", "distill"])
def test_progressive_pruning_in_one_run(learned: ts.Program, kind: str) -> None:
    events = tuple(At(when, prune(0.8)) for when in (0, 0.2, 0.4))
    step: Pass = ts.Finetune(batches(), F.cross_entropy, training=training(), events=events)
    if kind == "distill":
        step = ts.Distill(batches(), F.cross_entropy, training=training(), events=events)
    smaller = run(step, learned)
    done = [note for note in smaller.history[-1].notes if "prune_channels" in note]
    assert len(done) == 3
    assert size(smaller) < 0.6 * size(learned)
    assert score(smaller) > score(learned) - 0.05


@dataclass(frozen=True)
class _Broken(Pass):
    """Says that it changes no numbers, and doubles the logits."""

    promise: ClassVar[Promise] = Promise.EXACT

    def run(self, program: ts.Program) -> PassResult:
        name = next(name for name in program.parameters() if program.tensor(name).dim() == 2)
        program.set_tensor(name, program.tensor(name).detach() * 2)
        return PassResult(program, modified=True)


@pytest.mark.parametrize("where", ["finetune", "distill", "train_quantized"])
def test_a_pass_in_the_middle_that_breaks_its_promise_is_named(learned: ts.Program, where: str) -> None:
    kinds: dict[str, type[Any]] = {
        "finetune": ts.Finetune, "distill": ts.Distill, "train_quantized": ts.TrainQuantized
    }  # fmt: skip
    step = kinds[where](batches(), F.cross_entropy, training=training(epochs=1), events=(At(0.25, _Broken()),))
    with pytest.raises(TersorError, match="broken"):
        run(step, learned)


def test_only_quantized_training_leads_to_another_stage() -> None:
    with pytest.raises(TrainingError, match="another stage"):
        ts.Finetune(batches(), F.cross_entropy, events=(At(0.5, ts.Quantize()),))
    with pytest.raises(TrainingError, match="another stage"):
        ts.Distill(batches(), F.cross_entropy, events=(At(0.5, ts.Quantize()),))


@pytest.mark.parametrize("share", [True, -0.1, 1.5])
def test_the_share_without_moving_statistics_is_a_share(learned: ts.Program, share: Any) -> None:
    with pytest.raises(TersorError, match="freeze_batch_norm is out of range"):
        run(ts.Finetune(batches(), F.cross_entropy, freeze_batch_norm=share), learned)


def test_frozen_statistics_stay(learned: ts.Program) -> None:
    name = next(name for name in learned.tensors() if name.endswith("running_mean"))
    for share, stays in ((0.0, True), (0.5, False)):
        step = ts.Finetune(batches(), F.cross_entropy, training=training(epochs=2), freeze_batch_norm=share)
        assert torch.equal(run(step, learned).tensor(name), learned.tensor(name)) is stays


@pytest.mark.parametrize(
    ("pattern", "average"), [(Unstructured(0.5), None), (ts.NM(2, 4), 0.9), (ts.Block(1, 4, 0.5), 0.9)], ids=str
)
def test_fine_tuning_keeps_every_pattern_of_zeros(learned: ts.Program, pattern: Pattern, average: float | None) -> None:
    """Momentum and the running mean of the weights do not fill them either."""
    sparse = run(ts.Sparsify(pattern), learned)
    assert sparse.sparsity
    options = training(optimizer=ts.Optimizer.SGD, learning_rate=0.02, average=average, weight_decay=0.1)
    tuned = run(ts.Finetune(batches(), F.cross_entropy, training=options), sparse)
    assert tuned.sparsity == sparse.sparsity
    for name in sparse.sparsity:
        before, after = sparse.tensor(name), tuned.tensor(name)
        assert bool((after[before == 0] == 0).all())
        assert not torch.equal(before, after)
    assert score(tuned) > score(sparse)
