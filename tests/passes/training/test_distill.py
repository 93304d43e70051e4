"""Distillation: teachers of both kinds, features by module paths, the cache, what does not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tersor as ts
from tersor.ir.errors import TrainingError
from tersor.passes.progress import listening
from tersor.passes.training.batches import Split
from tersor.passes.training.distill import Distill, Distillation
from tersor.passes.training.features import Pair, module_outputs, output_of, suggest_pairs
from tersor.passes.training.teacher import Teacher
from tersor.passes.training.training_graph import tapped

from . import networks

X, Y = networks.data(128)
TRAINING = ts.Training(epochs=3, learning_rate=0.01, progress=False)


class Net(nn.Module):
    """A stem, blocks and a head whose features have a width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.Sequential(
            *[nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU()) for _ in range(2)]
        )
        self.head = nn.Linear(width * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.stem(x)).flatten(1))
        return logits


def model(width: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Net(width).eval()


def traced(width: int, seed: int = 0) -> ts.Program:
    return ts.trace(model(width, seed), X[:4], dynamic={"x": {0: "batch"}})


def run(student: ts.Program, distillation: Distillation, loss: Any = F.cross_entropy, **options: Any) -> ts.Program:
    batches = ts.ShuffledBatches(X, Y, size=32) if loss else ts.ShuffledBatches(X, size=32)
    step = Distill(batches, loss, distillation, **{"training": TRAINING, **options})
    return ts.PassManager([step]).run(student).program


def test_features_are_the_outputs_of_modules() -> None:
    module, program = model(4), traced(4)
    kept: dict[str, Tensor] = {}
    for path in ("stem", "blocks.0", "blocks.0.0", "blocks", "head"):
        module.get_submodule(path).register_forward_hook(lambda m, i, o, path=path: kept.update({path: o}))
    module(X)
    names = [output_of(program, path).name for path in kept]
    values = tapped(program, names).run([X])[1:]
    for path, value in zip(kept, values, strict=True):
        torch.testing.assert_close(value, kept[path], msg=path)


def test_a_teacher_is_a_program_or_a_module_and_says_the_same() -> None:
    module = model(4).train()
    paths = ["blocks.0", "stem"]
    asked = [Teacher(kind, paths, 0)(Split((X,), {}, (), {})) for kind in (module, traced(4))]
    for ours, theirs in zip(*asked, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert module.training


def test_a_student_without_labels_comes_to_say_what_its_teacher_says() -> None:
    teacher, student = traced(6), traced(6, seed=1)
    learned = run(student, Distillation(teacher), loss=None, training=ts.Training(epochs=30, progress=False))
    agree = [float((p(X).argmax(1) == teacher(X).argmax(1)).float().mean()) for p in (student, learned)]
    assert agree[1] > 0.9 > agree[0]


@pytest.mark.parametrize(
    "features",
    [
        {"attention": ("blocks.0", "blocks.1")},
        {"hints": (("blocks.0", "blocks.1"), Pair("head", "head"))},
        {"relations": ("blocks.1",)},
        {"relate_logits": True},
        {"attention": ("stem",), "hints": ("stem",), "relations": ("head",)},
    ],
)
@pytest.mark.parametrize("as_module", [True, False])
def test_features_of_the_student_come_closer(features: dict[str, Any], as_module: bool) -> None:
    teacher = model(6) if as_module else traced(6)
    seen: list[float] = []
    student = traced(3, seed=1)
    # With hard = 1 the logits do not count: what falls is the loss of the features.
    wanted = Distillation(teacher, hard=1.0, **features)

    def no_loss(logits: Tensor, labels: Tensor) -> Tensor:
        return logits.sum() * 0.0

    def listen(description: str, done: int, total: int | None, note: str = "", /) -> None:
        seen.append(float(note.split()[1]))

    with listening(listen):
        run(student, wanted, loss=no_loss, training=ts.Training(epochs=15, learning_rate=0.01))
    assert seen[-1] < 0.8 * seen[0]


def test_projections_are_no_part_of_the_program() -> None:
    student = traced(3, seed=1)
    learned = run(student, Distillation(traced(6), hints=("stem",)))
    assert learned.tensors().keys() == student.tensors().keys()


def test_the_teacher_is_asked_once_a_sample() -> None:
    asked = 0
    module = model(4)

    def count(*_: Any) -> None:
        nonlocal asked
        asked += 1

    module.register_forward_hook(count)
    run(traced(3), Distillation(module, attention=("stem",)))
    assert asked == 4
    asked = 0
    run(traced(3), Distillation(module, cache_megabytes=0))
    assert asked == 12


def test_what_is_cached_is_what_the_teacher_says() -> None:
    teacher = traced(4)
    options = {"attention": ("stem",), "hints": ("blocks.0",)}
    runs = [run(traced(3), Distillation(teacher, cache_megabytes=size, **options)) for size in (0, 64)]  # type: ignore[arg-type]
    for name, value in runs[0].tensors().items():
        torch.testing.assert_close(runs[1].tensor(name), value, rtol=1e-4, atol=1e-5)


def test_a_full_cache_forgets_data_that_never_comes_again() -> None:
    teacher = Teacher(traced(4), [], 1024)
    for seed in range(60):
        teacher(Split((torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(seed)),), {}, (), {}))
    assert teacher.cache.limit == 0
    assert not teacher.cache.rows


def test_pairs_are_suggested_where_names_match() -> None:
    expected = (Pair("stem", "stem"), Pair("blocks.0", "blocks.0"), Pair("blocks.1", "blocks.1"), Pair("head", "head"))
    assert suggest_pairs(traced(3), traced(6)) == expected
    assert suggest_pairs(traced(3), model(6)) == expected
    assert suggest_pairs(traced(3), nn.Sequential(nn.Linear(1, 1))) == ()


def test_features_are_found_after_quantization() -> None:
    quantized = ts.PassManager([ts.Quantize(ts.INT8, calibration=[X])]).run(traced(3)).program
    assert {"stem", "blocks.0", "blocks.1", "head"} <= module_outputs(quantized).keys()
    run(quantized, Distillation(attention=("blocks.0",)))


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"attention": ("block.0",)}, "no module 'block.0'.*such as blocks"),
        ({"attention": (("stem", "stemm"),)}, "no module 'stemm'"),
        ({"hints": (("stem", "head"),)}, "a hint does not fit"),
        ({"hard": 1.5}, "hard is out of range"),
        ({"temperature": 0}, "temperature is out of range"),
        ({"teacher": nn.Sequential(nn.Flatten(), nn.Linear(16, 5))}, "give other logits"),
    ],
)
def test_what_does_not_fit_is_said(wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=f"(?s){message}"):
        run(traced(3), Distillation(**{"teacher": traced(6), **wanted}))


def test_without_data_it_says_so() -> None:
    with pytest.raises(TrainingError, match="training data is missing"):
        Distill().run(traced(3))
