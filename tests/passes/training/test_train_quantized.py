"""Quantization-aware training: what it wins back, and that the lowered program is the trained one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import tersor as ts
from tersor.ir.errors import PassError, TrainingError
from tersor.ir.operators import FAKE_QUANTIZE
from tersor.ir.sparsity import Unstructured
from tersor.passes.training.events import At
from tersor.passes.training.simulate_folding import QuantizeBeforeFolding, fold_simulated
from tersor.passes.training.train_quantized import BatchNorm, Ranges, TrainQuantized

from . import networks

X, Y = networks.data(256)
TEST_X, TEST_Y = networks.data(256, seed=2)
TRAINING = ts.Training(epochs=6, learning_rate=2e-3, progress=False)
W2A4 = ts.Scheme(ts.QuantType(4), ts.QuantType(2, symmetric=True, granularity=ts.INT8.weight.granularity))


@pytest.fixture(scope="module")
def learned() -> ts.Program:
    """The float program, trained."""
    options = ts.Training(epochs=25, learning_rate=0.02, progress=False)
    finetune = ts.Finetune(ts.ShuffledBatches(X, Y, size=32), F.cross_entropy, training=options)
    return ts.PassManager([finetune]).run(networks.program()).program


def train(program: ts.Program, scheme: ts.Scheme = ts.INT8, **options: Any) -> ts.Program:
    given = {"training": TRAINING, **options}
    step = TrainQuantized(ts.ShuffledBatches(X, Y, size=32), F.cross_entropy, scheme, **given)
    return ts.PassManager([step]).run(program).program


def score(run: Any) -> float:
    return networks.accuracy(run(TEST_X), TEST_Y)


@pytest.mark.parametrize("scheme", [ts.INT8, ts.W4A8, ts.INT4, W2A4], ids=["w8a8", "w4a8", "w4a4", "w2a4"])
def test_the_lowered_program_is_the_trained_one(learned: ts.Program, scheme: ts.Scheme, tmp_path: Path) -> None:
    trained = train(learned, scheme)
    artifact = ts.lower(trained, target="onnxruntime", out=tmp_path)
    assert artifact.report.integer_share == 1.0
    simulated, lowered = trained(TEST_X).detach(), artifact.run(TEST_X)
    # Float sums may land on the other side of a tie: then one value of the last activation moves by one step.
    step = max(float(trained.constant(node.args[1]).max()) for node in activations(trained))  # type: ignore[union-attr]
    moved = (simulated - lowered).abs() > 1e-4 * simulated.abs().max()
    assert moved.float().mean() <= 0.02
    assert (simulated - lowered).abs().max() <= step * 4
    assert networks.accuracy(lowered, TEST_Y) == pytest.approx(networks.accuracy(simulated, TEST_Y), abs=1 / 256)


def activations(program: ts.Program) -> list[Any]:
    nodes = program.graph.find_nodes(op="call_function", target=FAKE_QUANTIZE)
    return [node for node in nodes if node.args[3] is None]


def test_training_wins_back_what_few_bits_cost(learned: ts.Program) -> None:
    rounded = ts.PassManager([ts.Quantize(W2A4, calibration=[X])]).run(learned).program
    assert score(learned) - score(rounded) > 0.05
    assert score(train(learned, W2A4)) > score(rounded) + 0.03


def test_frozen_ranges_stay_and_learned_ones_move(learned: ts.Program) -> None:
    quantized = ts.PassManager([ts.Quantize(ts.INT4, calibration=[X])]).run(learned).program
    scales = [name for name in quantized.tensors() if name.endswith(".scale")]
    for ranges, moves in ((Ranges.FROZEN, False), (Ranges.LEARNED, True)):
        trained = train(quantized, ts.INT4, ranges=ranges, training=ts.Training(epochs=1, progress=False))
        moved = [not torch.equal(trained.tensor(name), quantized.tensor(name)) for name in scales]
        assert any(moved) is moves
        assert not torch.equal(trained.tensor("7.weight"), quantized.tensor("7.weight"))


def test_it_starts_late_after_the_float_program_trained(learned: ts.Program) -> None:
    trained = train(learned, start=0.5, freeze_batch_norm=0.25, training=ts.Training(epochs=2, progress=False))
    assert trained.stage is ts.Stage.FAKE_QUANT
    assert any("step 8: insert_fake_quant" in note for note in trained.history[-1].notes)
    assert not trained.graph.find_nodes(op="call_function", target=torch.ops.aten.batch_norm.default)
    assert score(trained) > 0.8


@pytest.mark.parametrize("scheme", [ts.INT8, ts.INT4], ids=["w8a8", "w4a4"])
def test_batch_norm_trains_while_weights_are_rounded_as_folded(
    learned: ts.Program, scheme: ts.Scheme, tmp_path: Path
) -> None:
    """Its statistics move, then freeze; then it is folded, and the folded program is what is trained and evaluated."""
    kept: list[torch.Tensor] = []

    def metric(logits: torch.Tensor, labels: torch.Tensor) -> float:
        kept.append(logits.clone())
        return float(len(kept))

    trained = train(
        learned, scheme, batch_norm=BatchNorm.TRAINED, freeze_batch_norm=0.5, metric=metric,
        validation=[(TEST_X, TEST_Y)], training=ts.Training(epochs=2, learning_rate=2e-3, progress=False),
    )  # fmt: skip
    assert any("step 8: fold_simulated: batch norms folded: 1" in note for note in trained.history[-1].notes)
    assert not trained.graph.find_nodes(op="call_function", target=torch.ops.aten.batch_norm.default)
    logits = trained(TEST_X).detach()
    torch.testing.assert_close(logits, kept[-1])
    assert score(trained) > score(learned) - 0.05
    lowered = ts.lower(trained, target="onnxruntime", out=tmp_path).run(TEST_X)
    assert ((logits - lowered).abs() > 1e-3 * logits.abs().max()).float().mean() <= 0.02


def test_unfolding_changes_nothing_until_it_trains(learned: ts.Program) -> None:
    quantize = ts.Quantize(ts.INT8, calibration=[X])
    folded = ts.PassManager([quantize]).run(learned).program
    unfolded = ts.PassManager([QuantizeBeforeFolding(quantize)]).run(learned).program
    assert len(unfolded.graph.find_nodes(op="call_function", target=torch.ops.aten.batch_norm.default)) == 1
    apart = (unfolded(X) - folded(X)).abs().max() / folded(X).abs().max()
    assert apart < 0.03  # the folded one has its bias corrected besides
    again = unfolded.copy()
    assert fold_simulated(again) == 1
    moved = (again.verify()(X) - unfolded(X)).abs() > 1e-3 * unfolded(X).abs().max()
    assert moved.float().mean() < 0.02


def test_without_a_teacher_it_trains_on_the_targets(learned: ts.Program) -> None:
    assert score(train(learned, distillation=None)) >= score(learned) - 0.02


def test_the_float_program_is_the_teacher_by_default(learned: ts.Program) -> None:
    """Without any loss on targets, only the teacher can bring back what two bits cost."""
    plain = ts.Quantize(W2A4, calibration=[X], weight_observer=ts.Observer.MIN_MAX)
    rounded = ts.PassManager([plain]).run(learned).program
    step = TrainQuantized(ts.ShuffledBatches(X, size=32), None, W2A4, training=TRAINING)
    trained = ts.PassManager([step]).run(learned).program

    def apart(program: ts.Program) -> float:
        return F.kl_div(program(TEST_X).log_softmax(1), learned(TEST_X).softmax(1), reduction="batchmean").item()

    assert apart(trained) < apart(rounded) / 2


def test_zeros_stay_zero_on_every_grid(learned: ts.Program) -> None:
    sparse = learned.copy()
    weight = sparse.tensor("7.weight").detach().clone()
    weight[weight.abs() < weight.abs().median()] = 0
    sparse.set_tensor("7.weight", weight)
    sparse.sparsity["7.weight"] = Unstructured(0.6)
    trained = train(sparse, ts.INT4, training=ts.Training(epochs=1, progress=False))
    assert ((trained.tensor("7.weight") == 0) == (weight == 0)).all()
    assert trained.sparsity["7.weight"] == Unstructured(0.6)


def test_a_killed_run_with_learned_step_sizes_goes_on_to_the_same_bits(learned: ts.Program, tmp_path: Path) -> None:
    options = {"epochs": 2, "average": 0.9, "checkpoint_every": 3, "progress": False}
    whole = train(learned, ts.INT4, start=0.3, training=ts.Training(checkpoint=tmp_path / "whole", **options))  # type: ignore[arg-type]

    class KilledError(Exception):
        pass

    calls = 0

    def stopping(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 11:
            raise KilledError
        return F.cross_entropy(logits, labels)

    training = ts.Training(checkpoint=tmp_path / "killed", **options)  # type: ignore[arg-type]
    batches = ts.ShuffledBatches(X, Y, size=32)
    with pytest.raises(PassError, match="KilledError"):
        ts.PassManager([TrainQuantized(batches, stopping, ts.INT4, start=0.3, training=training)]).run(learned)
    again = train(learned, ts.INT4, start=0.3, training=training)
    assert any("resumed at step 9" in note for note in again.history[-1].notes)
    assert networks.same(again, whole)


def test_passes_in_the_middle_are_checked(learned: ts.Program) -> None:
    with pytest.raises(PassError, match="cannot run at stage fake_quant"):
        train(learned, events=(At(0.9, ts.FoldBatchNorm()),))
    with pytest.raises(TrainingError, match="after the last step"):
        train(learned, events=(At(10_000, ts.Canonicalize()),))


@pytest.mark.parametrize(("wrong", "message"), [({"batches": None}, "data is missing"), ({"start": 1.0}, "start")])
def test_what_is_missing_is_said(learned: ts.Program, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        TrainQuantized(**{"batches": [(X, Y)], "loss": F.cross_entropy, **wrong}).run(learned.copy())
