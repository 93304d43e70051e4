"""Distillation without data: what is made, that it teaches, and that nothing of the data is touched."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import tersor as ts
from tersor.ir.errors import TrainingError
from tersor.passes.training.distill_data_free import DistillDataFree, Source
from tersor.passes.training.reinitialize import reinitialized
from tersor.passes.training.synthesis import Memory, ReverseGradient

from . import networks

X, Y = networks.data(256)
TEST_X, TEST_Y = networks.data(256, seed=2)
QUICK = ts.Training(steps=60, optimizer=ts.Optimizer.ADAM, learning_rate=0.1, progress=False)
STUDENT = ts.Training(epochs=20, learning_rate=0.01, progress=False)


@pytest.fixture(scope="module")
def teacher() -> ts.Program:
    options = ts.Training(epochs=20, learning_rate=0.02, progress=False)
    finetune = ts.Finetune(ts.ShuffledBatches(X, Y, size=32), F.cross_entropy, training=options)
    return ts.PassManager([finetune]).run(networks.program()).program


class _Untouchable(TorchDispatchMode):
    """Raises where an operator reads a tensor whose memory is that of the data."""

    def __init__(self, *forbidden: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch
        self.places = {tensor.untyped_storage().data_ptr() for tensor in forbidden}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in [*args, *(kwargs or {}).values()]:
            for tensor in value if isinstance(value, list | tuple) else [value]:
                if isinstance(tensor, Tensor) and type(tensor) in (Tensor, nn.Parameter):
                    assert tensor.untyped_storage().data_ptr() not in self.places, "a sample of the data was read"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("source", list(Source))
def test_no_sample_of_the_data_is_touched(teacher: ts.Program, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the data in memory, nor the example that the program was traced with, nor any file is read."""
    student = reinitialized(teacher, seed=1)
    assert teacher.example is not None
    assert student.example is not None
    forbidden = (X, Y, *teacher.example, *student.example)
    with pytest.raises(AssertionError, match="a sample of the data was read"), _Untouchable(*forbidden):
        teacher(X)
    step = DistillDataFree(
        teacher, source, samples=16, size=8, training=ts.Training(epochs=1, progress=False),
        synthesis=ts.Training(steps=3, progress=False),
    )  # fmt: skip
    step.run(student.copy())  # what is imported on first use is imported now

    def closed(*arguments: Any, **options: Any) -> Any:
        raise AssertionError(f"a file was opened: {arguments}")

    monkeypatch.setattr(builtins, "open", closed)
    with _Untouchable(*forbidden):
        step.run(student.copy())


def test_there_is_no_way_to_give_it_data() -> None:
    assert not {"batches", "calibration", "validation"} & DistillDataFree.__dataclass_fields__.keys()


def test_synthesized_inputs_look_to_the_teacher_like_its_data(teacher: ts.Program) -> None:
    made = DistillDataFree(samples=64, size=32, synthesis=QUICK).synthesize(teacher)
    noise = torch.randn(made.shape, generator=torch.Generator().manual_seed(0)) * 3
    memory = Memory(teacher)
    distances = [float(memory.look(inputs)[1]) for inputs in (made, noise, X[:64])]
    assert distances[0] < distances[1] / 2
    assert F.softmax(teacher(made), 1).amax(1).mean() > 0.8
    counts = teacher(made).argmax(1).bincount(minlength=3)
    assert counts.min() > 10
    assert torch.equal(made, DistillDataFree(samples=64, size=32, synthesis=QUICK).synthesize(teacher))


@pytest.mark.parametrize("source", list(Source))
def test_a_student_learns_from_it(teacher: ts.Program, source: Source) -> None:
    student = reinitialized(teacher, seed=1)
    step = DistillDataFree(teacher, source, samples=512, size=32, training=STUDENT, synthesis=QUICK)
    learned = ts.PassManager([step]).run(student).program
    before, after = (networks.accuracy(program(TEST_X), TEST_Y) for program in (student, learned))
    assert networks.accuracy(teacher(TEST_X), TEST_Y) > 0.85
    assert after > max(0.65, before + 0.2)


def test_a_quantized_program_is_taught_by_its_float_self_without_data(teacher: ts.Program) -> None:
    quantized = ts.PassManager([ts.Quantize(ts.INT4, calibration=[X])]).run(teacher).program
    step = DistillDataFree(teacher, samples=64, size=32, epochs=1, synthesis=QUICK)
    assert ts.PassManager([step]).run(quantized).program.stage is ts.Stage.FAKE_QUANT


def test_a_reversed_gradient_is_reversed() -> None:
    x = torch.ones(3, requires_grad=True)
    y = ReverseGradient.apply(x, 0.5)  # type: ignore[no-untyped-call]  # torch
    assert torch.equal(y, x)
    y.sum().backward()
    assert torch.equal(x.grad, torch.full((3,), -0.5))  # type: ignore[arg-type]  # there is one


def test_a_teacher_that_remembers_nothing_is_refused() -> None:
    with pytest.raises(TrainingError, match="no batch norm"):
        DistillDataFree().run(networks.program(norm=False))
    fixed = ts.trace(networks.net(), X[:4])
    with pytest.raises(TrainingError, match="inputs cannot be synthesized"):
        DistillDataFree().run(fixed)
