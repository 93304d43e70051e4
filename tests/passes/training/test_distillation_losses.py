"""Each distillation loss against its formula in numpy or plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tersor.passes.training.distillation_losses import attention_map, attention_transfer, hint, relations, soft_labels


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 7)])
def test_soft_labels(shape: tuple[int, ...]) -> None:
    student, teacher, heat = random(*shape), random(*shape, seed=1), 3.0

    def softmax(values: np.ndarray) -> np.ndarray:
        powers = np.exp(values / heat)
        shares: np.ndarray = powers / powers.sum(-1, keepdims=True)
        return shares

    p, q = softmax(teacher.double().numpy()), softmax(student.double().numpy())
    expected = heat**2 * (p * np.log(p / q)).sum(-1).mean()
    assert soft_labels(student, teacher, heat).item() == pytest.approx(expected, rel=1e-5)


def test_soft_labels_have_the_gradient_of_cross_entropy_whatever_the_temperature() -> None:
    """At a high temperature the gradient is that of the logits' difference over the classes: T^2 keeps its size."""
    student, teacher = random(1, 10).requires_grad_(), random(1, 10, seed=1)
    (gradient,) = torch.autograd.grad(soft_labels(student, teacher, 1000.0), student)
    centred = [logits - logits.mean() for logits in (student.detach(), teacher)]
    torch.testing.assert_close(gradient, (centred[0] - centred[1]) / 10, rtol=1e-2, atol=1e-3)


def test_attention_maps_sum_over_channels() -> None:
    images, tokens = random(2, 3, 4, 5), random(2, 6, 3)
    torch.testing.assert_close(attention_map(images), (images**2).mean(1))
    torch.testing.assert_close(attention_map(tokens), (tokens**2).mean(2))


def test_attention_transfer_is_the_distance_of_directions() -> None:
    student, teacher = random(4, 3, 2, 2), random(4, 9, 2, 2, seed=1)
    total = 0.0
    for ours, theirs in zip(student.double().numpy(), teacher.double().numpy(), strict=True):
        a, b = (ours**2).mean(0).ravel(), (theirs**2).mean(0).ravel()
        total += float(np.linalg.norm(a / np.linalg.norm(a) - b / np.linalg.norm(b)))
    assert attention_transfer(student, teacher).item() == pytest.approx(total / 4, rel=1e-4)


def test_maps_of_other_sizes_are_resized_to_the_students() -> None:
    teacher = random(2, 3, 8, 8)
    pooled = torch.nn.functional.avg_pool2d((teacher**2).mean(1, keepdim=True), 2)
    assert attention_transfer(pooled.sqrt(), teacher).item() == pytest.approx(0, abs=1e-5)
    assert attention_transfer(random(2, 3, 16, 16), teacher).isfinite()
    assert attention_transfer(random(2, 5, 4), random(2, 9, 7)).isfinite()


def test_equal_maps_have_no_loss_and_a_finite_gradient() -> None:
    features = random(2, 3, 4, 4).requires_grad_()
    loss = attention_transfer(features, features.detach())
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert features.grad is not None
    assert features.grad.isfinite().all()
    silent = torch.zeros(2, 3, 4, 4, requires_grad=True)
    attention_transfer(silent, features.detach()).backward()
    assert silent.grad is not None
    assert silent.grad.isfinite().all()


def test_hints_are_squared_errors() -> None:
    assert hint(torch.ones(2, 3), torch.zeros(2, 3)).item() == 1.0


def test_relations_by_loops() -> None:
    student, teacher = random(5, 4), random(5, 6, seed=1)

    def huber(a: float, b: float) -> float:
        d = abs(a - b)
        return 0.5 * d * d if d < 1 else d - 0.5

    def distances(rows: Tensor) -> np.ndarray:
        found = np.array([[float((a - b).norm()) for b in rows] for a in rows])
        scaled: np.ndarray = found / found[~np.eye(len(rows), dtype=bool)].mean()
        return scaled

    def angle(rows: Tensor, i: int, j: int, k: int) -> float:
        left, right = rows[i] - rows[j], rows[k] - rows[j]
        return 0.0 if i == j or k == j else float(left @ right / left.norm() / right.norm())

    a, b = distances(student), distances(teacher)
    expected = np.mean([huber(x, y) for x, y in zip(a.ravel(), b.ravel(), strict=True)])
    triples = [(i, j, k) for i in range(5) for j in range(5) for k in range(5)]
    expected += 2 * np.mean([huber(angle(student, *t), angle(teacher, *t)) for t in triples])
    assert relations(student, teacher).item() == pytest.approx(expected, rel=1e-3)


def test_relations_do_not_change_with_size_or_place() -> None:
    rows = random(6, 4)
    assert relations(rows, 3 * rows + 5).item() == pytest.approx(0, abs=1e-5)
    assert relations(rows[:1], rows[:1]).item() == 0.0
