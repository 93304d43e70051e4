"""Where a model cannot be traced, the error shows the user's line and a way out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tersor.frontends.torch_export import trace
from tersor.ir.errors import TraceError


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # the branch
            return x
        return -x


class Cond(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))  # the condition


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 2))

    def forward(self, x: Tensor) -> Any:
        return self.layers(x)  # the call


class Prepares(nn.Module):
    """Scales its weight in its first call, and never again."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.ready = nn.Parameter(torch.ones(3)), False

    def forward(self, x: Tensor) -> Tensor:
        if not self.ready:
            with torch.no_grad():
                self.weight.div_(2)
            self.ready = True
        return x * self.weight


class Counter(nn.Module):
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1  # the write
        return x + self.seen


class WritesInput(nn.Module):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        batch["x"].mul_(2)  # the write
        return batch["x"] + 1


class Opaque:
    """No container that can be traced through."""


class ReturnsObject(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return {"y": x, "cache": Opaque()}


class ReturnsSize(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return x, x.shape[0]


class Raises(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("no such head")  # the raise


def failure(model: nn.Module, *args: Any, **options: Any) -> TraceError:
    with pytest.raises(TraceError) as caught:
        trace(model, args, **options)
    return caught.value


@pytest.mark.parametrize(
    ("model", "line", "hint"),
    [
        (Branch(), "if x.sum() > 0:  # the branch", "torch.where"),
        (Cond(), "torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))  # the condition", "branch"),
        (Layers(), "return self.layers(x)  # the call", "shapes and dtypes"),
        (Counter(), "self.seen += 1  # the write", "pass it in as an input"),
        (Raises(), 'raise KeyError("no such head")  # the raise', "runs by itself"),
    ],
)
def test_the_users_line_and_what_to_do(model: nn.Module, line: str, hint: str) -> None:
    error = failure(model, torch.randn(4, 3))
    assert line in str(error)
    assert __file__ in str(error)
    assert hint in str(error.hint)
    assert str(error).count("\n") < 6


def test_a_buffer_that_is_written_is_named() -> None:
    assert "writes to 'seen'" in failure(Counter(), torch.randn(2)).what


def test_a_model_that_prepares_its_weights_is_to_be_called_once() -> None:
    error = failure(Prepares(), torch.randn(4, 3))
    assert "writes to 'weight'" in error.what
    assert "called once before it is traced" in str(error.hint)
    model, x = Prepares(), torch.randn(4, 3)
    expected = model(x)
    torch.testing.assert_close(trace(model, x)(x), expected)


def test_an_input_that_is_written_is_named() -> None:
    error = failure(WritesInput(), {"x": torch.randn(2)})
    assert "writes to 'batch.x'" in error.what
    assert "# the write" in str(error)


def test_the_cause_is_kept() -> None:
    cause = failure(Raises(), torch.randn(2)).__cause__
    assert isinstance(cause, KeyError)


def test_outputs_that_no_program_can_return() -> None:
    assert "output.cache is a Opaque" in failure(ReturnsObject(), torch.randn(2)).what
    error = failure(ReturnsSize(), torch.randn(2, 3), dynamic={"x": {0: "batch"}})
    assert "output.1 is a SymInt" in error.what
    assert "torch.tensor" in str(error.hint)


def test_inputs_that_no_program_can_take() -> None:
    assert "input input is a Opaque" in failure(nn.ReLU(), Opaque()).what


def test_arguments_that_do_not_fit_forward() -> None:
    error = failure(nn.ReLU(), torch.randn(2), torch.randn(2))
    assert "as the model is called" in str(error.hint)
    assert "by position and by name" in failure(nn.ReLU(), torch.randn(2), kwargs={"input": torch.randn(2)}).what


def test_only_modules_are_traced() -> None:
    with pytest.raises(TraceError, match=r"torch\.nn\.Module"):
        trace(torch.relu, (torch.randn(2),))  # type: ignore[arg-type]  # what the test is about
