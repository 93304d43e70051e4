"""What is traced computes what the model computes, and the model stays as it was."""

from __future__ import annotations

import io
import logging
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tersor.frontends.torch_export import trace
from tersor.ir.errors import SignatureError, TraceError
from tersor.ir.origin import Origin
from tersor.ir.program import Program

aten = torch.ops.aten


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


@dataclass
class Point:
    """A plain dataclass, which torch.export by itself does not know."""

    x: Tensor
    scale: float
    y: Tensor | None = None


class Nested(nn.Module):
    def forward(self, pair: Pair, points: dict[str, list[Point]], offset: float = 0.0) -> dict[str, Any]:
        first, second = points["items"]
        total = pair.left * first.x * first.scale + pair.right * second.x + offset
        return {"total": total, "pair": Pair(total, pair.left + 1), "point": Point(first.x + 1, 2.0), "none": None}


class ConvNet(nn.Module):
    """In-place operators, batch norm, dropout, a buffer that is not saved, and a constant in forward."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("mask", torch.rand(8, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.conv(x)), inplace=True)
        y = y * 2
        y += self.mask
        y[:, 0] = 0.0
        return self.drop(y) * torch.tensor([1.0, 2.0]).sum()  # type: ignore[no-any-return]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.block = nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.block(self.block(self.embed(tokens))))  # type: ignore[no-any-return]


class Awkward(nn.Module):
    """Sub-modules named as what a GraphModule has of its own."""

    meta: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.graph = nn.Linear(4, 4)
        self.code = nn.ModuleList([nn.Linear(4, 4)])
        self.register_buffer("meta", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.code[0](self.graph(x)) + self.meta  # type: ignore[no-any-return]


class Gradless(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = x.abs().amax()
        with torch.enable_grad():
            shifted = x + 1
        return shifted / scale


class Through(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        y = x * self.weight
        return x, self.weight, y, y


def check_equal(model: nn.Module, *args: Any, **kwargs: Any) -> Program:
    """Trace, verify, and compare with eager inference on the same inputs."""
    program = trace(model, args, kwargs).verify()
    model.eval()
    with torch.no_grad():
        expected, found = model(*args, **kwargs), program(*args, **kwargs)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    return program


def test_nested_inputs_and_outputs_come_back_as_their_own_classes() -> None:
    pair = Pair(torch.randn(2, 3), torch.randn(2, 3))
    points = {"items": [Point(torch.randn(2, 3), 0.5), Point(torch.randn(2, 3), 3.0, torch.randn(2))]}
    model = Nested()
    program = trace(model, (pair, points), {"offset": 2.0})
    assert program.signature.output_names == ("total", "pair.0", "pair.1", "point.x")
    assert [spec.name for spec in program.signature.inputs] == [
        "pair.0", "pair.1", "points.items.0.x", "points.items.1.x", "points.items.1.y",
    ]  # fmt: skip
    found, expected = program(pair, points, offset=2.0), model(pair, points, offset=2.0)
    assert isinstance(found["pair"], Pair)
    assert isinstance(found["point"], Point)
    assert found["none"] is None
    assert found["point"].scale == 2.0
    for left, right in [(found["total"], expected["total"]), (found["pair"].right, expected["pair"].right)]:
        assert torch.equal(left, right)


def test_a_constant_of_another_value_is_refused() -> None:
    x = torch.randn(2, 3)
    program = trace(Nested(), (Pair(x, x), {"items": [Point(x, 0.5), Point(x, 3.0)]}, 2.0))
    program(Pair(x, x), {"items": [Point(x, 0.5), Point(x, 3.0)]}, 2.0)
    with pytest.raises(SignatureError, match="not nested as they were"):
        program(Pair(x, x), {"items": [Point(x, 0.5), Point(x, 3.0)]}, 1.0)


def test_positional_and_keyword_inputs_are_interchangeable() -> None:
    layer = nn.Bilinear(3, 4, 5)
    a, b = torch.randn(2, 3), torch.randn(2, 4)
    program = trace(layer, (a,), {"input2": b})
    expected = layer(a, b)
    for found in (program(a, b), program(a, input2=b), program(input2=b, input1=a)):
        assert torch.equal(found, expected)


def test_variadic_inputs() -> None:
    class Sum(nn.Module):
        def forward(self, *terms: Tensor, **more: Tensor) -> Tensor:
            return torch.stack([*terms, *more.values()]).sum(0)

    program = check_equal(Sum(), torch.randn(3), torch.randn(3), z=torch.randn(3), a=torch.randn(3))
    assert [spec.name for spec in program.signature.inputs] == ["terms_0", "terms_1", "z", "a"]


def test_the_model_is_left_as_it_was() -> None:
    model = ConvNet().train()
    model.norm.eval()
    before = {name: tensor.clone() for name, tensor in {**model.state_dict(), "mask": model.mask}.items()}
    attributes = set(vars(model))
    fast_path = torch.backends.mha.get_fastpath_enabled()
    program = trace(model, torch.randn(2, 3, 6, 6))
    assert model.training
    assert model.drop.training
    assert not model.norm.training
    assert set(vars(model)) == attributes
    assert torch.backends.mha.get_fastpath_enabled() == fast_path
    for name, tensor in before.items():
        assert torch.equal({**model.state_dict(), "mask": model.mask}[name], tensor)
    with torch.no_grad():
        program.tensor("conv.weight").zero_()
    assert torch.equal(model.conv.weight, before["conv.weight"])


def test_in_place_operators_become_functional() -> None:
    program = check_equal(ConvNet(), torch.randn(2, 3, 6, 6))
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert not any(target._schema.is_mutable for target in targets if target is not aten.batch_norm.default)
    assert aten.batch_norm.default in targets
    assert aten.dropout.default in targets


def test_training_mode_is_that_of_the_model() -> None:
    model, x = ConvNet(), torch.randn(4, 3, 6, 6)
    program = trace(model, x)
    model.train()
    program.train()
    for _ in range(2):
        torch.manual_seed(3)
        expected = model(x)
        torch.manual_seed(3)
        found = program(x)
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(program.tensor("norm.running_mean"), model.norm.running_mean)
    found.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(program.tensor("conv.weight").grad, model.conv.weight.grad)
    model.eval()
    program.eval()
    torch.testing.assert_close(program(x), model(x))


def test_the_example_needs_no_gradient() -> None:
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    program = trace(ConvNet(), x * 2)
    assert program.example is not None
    assert not program.example[0].requires_grad


def test_tracing_inside_inference_mode_gives_tensors_that_train() -> None:
    model = nn.Linear(3, 2)
    with torch.inference_mode():
        program = trace(model, torch.randn(2, 3))
    program(torch.randn(2, 3)).sum().backward()
    assert program.tensor("weight").grad is not None


def test_tied_weights_are_one_tensor_under_both_names() -> None:
    program = check_equal(Tied(), torch.randint(0, 11, (2, 5)))
    assert program.tensor("embed.weight") is program.tensor("head.weight")
    assert program.tensors().keys() == {"embed.weight", "head.weight", "block.weight", "block.bias"}
    assert len(program.parameters()) == 3


def test_buffers_and_constants_are_kept() -> None:
    program = trace(ConvNet(), torch.randn(1, 3, 6, 6))
    assert "mask" in program.tensors()
    assert not isinstance(program.tensor("mask"), nn.Parameter)
    assert isinstance(program.tensor("conv.weight"), nn.Parameter)


def test_names_that_a_module_has_already() -> None:
    program = check_equal(Awkward(), torch.randn(2, 4))
    assert all(program.tensor(name) is tensor for name, tensor in program.tensors().items())


def test_no_grad_regions_leave_no_nested_graph() -> None:
    program = check_equal(Gradless(), torch.randn(2, 3))
    assert [node.name for node in program.graph.nodes if node.op == "call_function"] == ["abs_1", "amax", "add", "div"]
    lines = {node.name: Origin.of(node) for node in program.graph.nodes}
    assert "x.abs().amax()" in str(lines["amax"])


def test_outputs_may_be_inputs_and_parameters_and_repeat() -> None:
    check_equal(Through(), torch.randn(2, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types(dtype: torch.dtype) -> None:
    model = ConvNet().to(dtype)
    program = trace(model, torch.randn(1, 3, 6, 6, dtype=dtype)).verify()
    x = torch.randn(1, 3, 6, 6, dtype=dtype)
    with torch.no_grad():
        torch.testing.assert_close(program(x), model.eval()(x))
    assert program.tensor("conv.weight").dtype == dtype


def test_attention_is_operators_and_not_the_fast_path() -> None:
    program = check_equal(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval(), torch.randn(2, 5, 16))
    names = {str(node.target) for node in program.graph.nodes}
    assert not any("_transformer_encoder_layer_fwd" in name or "_native_multi_head" in name for name in names)


def test_multihead_attention() -> None:
    x = torch.randn(2, 5, 16)
    check_equal(nn.MultiheadAttention(16, 2, batch_first=True), x, x, x)


def test_origins_point_to_the_line_and_module_that_a_person_wrote() -> None:
    program = trace(nn.Sequential(ConvNet()), torch.randn(2, 3, 6, 6))
    (conv,) = program.graph.find_nodes(op="call_function", target=aten.conv2d.default)
    origin = Origin.of(conv)
    assert origin is not None
    assert origin.file == __file__
    assert origin.module == "0.conv"
    assert origin.code == "y = F.relu(self.norm(self.conv(x)), inplace=True)"


def test_a_layer_by_itself_points_into_torch() -> None:
    origin = Origin.of(trace(nn.Linear(2, 2), torch.randn(1, 2)).outputs[0])
    assert origin is not None
    assert origin.file.endswith("linear.py")
    assert str(origin).startswith("torch/nn/modules/linear.py:"), "not where torch is installed"
    assert origin.module == ""


def test_the_same_model_gives_the_same_text() -> None:
    model, x = ConvNet(), torch.randn(2, 3, 6, 6)
    assert str(trace(model, x)) == str(trace(model, x))


def test_casts_to_the_type_of_another_tensor_name_the_type() -> None:
    class Cast(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x.double() * 2).type_as(x)

    program = trace(Cast(), torch.randn(2))
    (cast, *_) = reversed([node for node in program.graph.nodes if node.op == "call_function"])
    assert (cast.target, cast.kwargs["dtype"]) == (torch.ops.aten._to_copy.default, torch.float32)


def test_history_and_name() -> None:
    program = trace(nn.ReLU(), torch.randn(2), name="gate")
    assert program.name == "gate"
    assert [entry.name for entry in program.history] == ["trace"]


class Warns(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        warnings.warn("mind the model", stacklevel=1)
        return x @ torch.ones(3, 4) if x.sum() > 0 else x


def test_nothing_but_the_model_speaks() -> None:
    out, err = io.StringIO(), io.StringIO()
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    setattr(handler, "emit", records.append)  # noqa: B010  # mypy takes no assignment to a method
    loggers = [logging.getLogger(name) for name in ("torch", "torch._subclasses.fake_tensor", "torch.export")]
    with redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for logger in loggers:
            logger.addHandler(handler)
        try:
            trace(ConvNet(), torch.randn(2, 3, 6, 6))
            trace(nn.GRU(3, 4), torch.randn(2, 1, 3))
            for model, shape in ((Warns(), (2, 3)), (nn.Linear(5, 2), (2, 3))):
                with pytest.raises(TraceError):
                    trace(model, torch.randn(shape))
        finally:
            for logger in loggers:
                logger.removeHandler(handler)
    assert (out.getvalue(), err.getvalue(), records) == ("", "", [])
    assert [str(warning.message) for warning in caught] == ["mind the model"]
    assert not any(logger.disabled for logger in loggers)
