"""Every benchmark of training runs in its quick form, on networks that train in a second."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import per_channel, training_data_free, training_distillation, training_pruning, training_quantization
from benchmarks.__main__ import main
from benchmarks.trained import Trained, byte_language_model, digits_cnn, digits_mobile, digits_vit, noisy_digits
from benchmarks.trained import trained as module

CACHES = (
    training_data_free.teacher, training_data_free.student, training_distillation.teacher,
    training_distillation.student, training_pruning.model, training_quantization.cnn, per_channel.depthwise,
    per_channel.residual,
)  # fmt: skip


def tiny_cnn(seed: int, width: int = 32, **options: Any) -> Trained:
    return digits_cnn(seed, width=4, rows=64, noise=options.get("noise", 0.0), canvas=options.get("canvas", 8))


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Models that train in a second, kept apart from the real ones."""
    transformers = importlib.import_module("benchmarks.training_transformers")
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    for place in (training_quantization, training_pruning, training_distillation, training_data_free, per_channel):
        monkeypatch.setattr(place, "digits_cnn", tiny_cnn)
    monkeypatch.setattr(per_channel, "digits_mobile", lambda seed, **options: digits_mobile(seed, width=4))
    monkeypatch.setattr(transformers, "digits_vit", lambda seed: digits_vit(seed, width=8, depth=1))
    monkeypatch.setattr(transformers, "byte_language_model", lambda seed: byte_language_model(seed, width=8, depth=1))
    for cache in CACHES:
        cache.cache_clear()
    yield
    for cache in CACHES:
        cache.cache_clear()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "name", ["per_channel", "training_data_free", "training_distillation",
             pytest.param("training_pruning", marks=pytest.mark.slow),
             pytest.param("training_quantization", marks=pytest.mark.slow),
             pytest.param("training_transformers", marks=pytest.mark.slow)],
)  # fmt: skip
def test_it_runs_and_puts_each_method_beside_its_absence(name: str) -> None:
    rows = importlib.import_module(f"benchmarks.{name}").run(True)
    assert all(math.isfinite(row.ours) for row in rows)
    assert len({row.what for row in rows}) == len(rows)
    methods = [row for row in rows if row.peer_name]
    assert methods
    assert all(row.peer is not None and math.isfinite(row.peer) and "seeds" in row.note for row in methods)


def test_a_name_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "training_nothing"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "no benchmark 'training_nothing'" in capsys.readouterr().err


def test_what_hyperparameters_are_chosen_with_is_no_test_image() -> None:
    chosen, judged = noisy_digits(0, 0.3, held_out=True), noisy_digits(0, 0.3)
    known = {image.numpy().tobytes() for image in judged.train_images}
    assert all(image.numpy().tobytes() in known for image in (*chosen.train_images, *chosen.test_images))
    trained_on = {image.numpy().tobytes() for image in chosen.train_images}
    assert not any(image.numpy().tobytes() in trained_on for image in chosen.test_images)


def test_a_digit_lies_whole_somewhere_on_a_canvas() -> None:
    placed, plain = noisy_digits(0, canvas=12), noisy_digits(0)
    assert placed.train_images.shape[1:] == (1, 12, 12)
    assert len({int(image[0].argmax()) for image in placed.train_images[:50]}) > 10
    torch.testing.assert_close((placed.train_images + 1).sum((1, 2, 3)), (plain.train_images + 1).sum((1, 2, 3)))
