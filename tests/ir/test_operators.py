"""The arithmetic of tersor's operators, against NumPy, hand-written gradients and ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from tersor.ir.operators import (
    BIAS_LIMIT,
    FAKE_QUANTIZE,
    FAKE_QUANTIZE_BIAS,
    OBSERVE,
    along,
    bias_scale,
    quantize_bias,
    quantize_to_grid,
)

Array = np.ndarray[Any, Any]
SCALES = (0.1, 1 / 3, 0.007, 1.0, 2.0**-9, 1e-6, 37.5)
GRIDS = ((-128, 127, 0), (-128, 127, 17), (-127, 127, 0), (-8, 7, -8), (-7, 7, 0), (-2, 1, 1))


def ties(scale: float) -> Tensor:
    """Around every tie (k + 0.5) * scale of an 8-bit grid and beyond: the float32 below it, itself, the one above."""
    exact = (torch.arange(-300, 300, dtype=torch.float64) + 0.5) * scale
    middle = exact.float()
    below = torch.nextafter(middle, torch.full_like(middle, -torch.inf))
    above = torch.nextafter(middle, torch.full_like(middle, torch.inf))
    return torch.cat([below, middle, above])


def random(scale: float, size: int = 500) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(1)) * scale * 90


def numpy_quantize(x: Tensor, scale: Array, zero_point: int, low: int, high: int) -> Array:
    """Half to even by hand, on the float32 quotient: nothing of torch's rounding."""
    ratio = (x.numpy() / scale).astype(np.float64)
    floor = np.floor(ratio)
    rest = ratio - floor
    up = (rest > 0.5) | ((rest == 0.5) & (floor % 2 == 1))
    stored: Array = np.clip(floor + up + zero_point, low, high)
    return stored


def onnx_round_trip(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> Tensor:
    """QuantizeLinear then DequantizeLinear, int8, in ONNX Runtime."""
    attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "round_trip",
        [
            value("x", TensorProto.FLOAT, x.shape),
            value("s", TensorProto.FLOAT, scale.shape),
            value("z", TensorProto.INT8, scale.shape),
        ],
        [value("y", TensorProto.FLOAT, x.shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])
    model.ir_version = 10
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {"x": x.numpy(), "s": scale.numpy(), "z": zero_point.to(torch.int8).numpy()}
    return torch.from_numpy(session.run(None, feeds)[0])


# -- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("low", "high", "zero"), GRIDS)
def test_fake_quantize_is_numpy_on_ties_and_at_random(scale: float, low: int, high: int, zero: int) -> None:
    step, zero_point = torch.tensor(scale), torch.tensor(zero, dtype=torch.int32)
    x = torch.cat([ties(scale), random(scale), torch.tensor([0.0, -0.0, 1e30, -1e30])])
    stored = numpy_quantize(x, step.numpy(), zero, low, high)
    assert np.array_equal(quantize_to_grid(x, step, zero_point, None, low, high).numpy(), stored)
    expected = (stored - zero).astype(np.float32) * step.numpy()
    assert np.array_equal(FAKE_QUANTIZE(x, step, zero_point, None, low, high).numpy(), expected)


def test_ties_go_to_the_even_value() -> None:
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5])
    result = FAKE_QUANTIZE(x, torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), None, -128, 127)
    assert result.tolist() == [-2, -2, 0, 0, 2, 2, 4]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_per_channel_is_per_tensor_channel_by_channel(axis: int) -> None:
    x = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0)) * 3
    size = x.shape[axis]
    scale, zero = torch.rand(size) * 0.1 + 0.01, torch.arange(-2, size - 2, dtype=torch.int32)
    whole = FAKE_QUANTIZE(x, scale, zero, axis, -128, 127)
    for index in range(size):
        channel = FAKE_QUANTIZE(x.select(axis, index), scale[index], zero[index], None, -128, 127)
        assert torch.equal(whole.select(axis, index), channel)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("zero", [0, -128, 17])
def test_fake_quantize_is_onnx_runtime_on_ties_and_at_random(scale: float, zero: int) -> None:
    step, zero_point = torch.tensor(scale), torch.tensor(zero, dtype=torch.int32)
    x = torch.cat([ties(scale), random(scale)])
    ours = FAKE_QUANTIZE(x, step, zero_point, None, -128, 127)
    assert torch.equal(ours, onnx_round_trip(x, step, zero_point, None))


def test_fake_quantize_per_channel_is_onnx_runtime() -> None:
    scale = torch.tensor([0.1, 1 / 3, 0.007])
    x = torch.stack([ties(float(step)) for step in scale], dim=1)
    zero = torch.tensor([0, 3, -9], dtype=torch.int32)
    assert torch.equal(FAKE_QUANTIZE(x, scale, zero, 1, -128, 127), onnx_round_trip(x, scale, zero, 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_result_has_the_dtype_of_x(dtype: torch.dtype) -> None:
    x = torch.randn(8).to(dtype)
    result = FAKE_QUANTIZE(x, torch.tensor(0.1), torch.tensor(0, dtype=torch.int32), None, -128, 127)
    assert result.dtype is dtype
    assert torch.equal(result, FAKE_QUANTIZE(x.float(), torch.tensor(0.1), torch.tensor(0), None, -128, 127).to(dtype))


def test_along_places_a_vector_on_its_axis() -> None:
    assert along(torch.ones(3), 1, 4).shape == (1, 3, 1, 1)
    assert along(torch.ones(()), None, 4).shape == ()


def test_observe_is_the_identity_in_memory_of_its_own() -> None:
    x = torch.randn(3, requires_grad=True)
    y = OBSERVE(x, "group", None, -128, 127, False)
    assert torch.equal(x, y)
    assert y.data_ptr() != x.data_ptr()
    y.sum().backward()
    assert torch.equal(x.grad if x.grad is not None else torch.zeros(0), torch.ones(3))


# -- bias ------------------------------------------------------------------------------------------------------------


def test_a_bias_is_rounded_on_the_accumulators_grid() -> None:
    input_scale, weight_scale = torch.tensor(0.02), torch.tensor([0.01, 0.003, 0.5])
    scale = (input_scale.numpy() * weight_scale.numpy()).astype(np.float32)
    assert np.array_equal(bias_scale(input_scale, weight_scale).numpy(), scale)
    bias = torch.tensor([0.1234, -3.0, 7.7])
    steps = np.rint(bias.numpy().astype(np.float64) / scale.astype(np.float64)).astype(np.int32)
    assert np.array_equal(quantize_bias(bias, input_scale, weight_scale).numpy(), steps)
    expected = (steps.astype(np.float64) * scale.astype(np.float64)).astype(np.float32)
    assert np.array_equal(FAKE_QUANTIZE_BIAS(bias, input_scale, weight_scale).numpy(), expected)


def test_a_bias_stays_within_its_limit() -> None:
    bias = torch.tensor([1e9, -1e9])
    steps = quantize_bias(bias, torch.tensor(1e-3), torch.tensor(1e-3))
    assert steps.dtype is torch.int32
    assert steps.tolist() == [BIAS_LIMIT, -BIAS_LIMIT]


def test_a_bias_passes_its_gradient_on() -> None:
    bias = torch.randn(3, requires_grad=True)
    grad = torch.tensor([1.0, -2.0, 3.0])
    FAKE_QUANTIZE_BIAS(bias, torch.tensor(0.1), torch.tensor([0.1, 0.2, 0.3])).backward(grad)
    assert torch.equal(bias.grad if bias.grad is not None else torch.zeros(0), grad)


# -- gradients -------------------------------------------------------------------------------------------------------


def gradients(x: Tensor, scale: Tensor, zero: Tensor, axis: int | None, grad: Tensor) -> tuple[Tensor, Tensor]:
    x, scale = x.clone().requires_grad_(), scale.clone().requires_grad_()
    FAKE_QUANTIZE(x, scale, zero, axis, -8, 7).backward(grad)
    assert x.grad is not None
    assert scale.grad is not None
    return x.grad, scale.grad


def expected_gradients(x: float, scale: float, zero: int, grad: float) -> tuple[float, float]:
    """One value: y = (clamp(round(x / s) + z) - z) * s, with round's own slope taken as 1.

    Inside, dy/dx = 1 and dy/ds = round(x / s) - x / s. Clamped, y = (q - z) * s with q constant.
    """
    steps = round(x / scale) + zero
    if -8 <= steps <= 7:
        return grad, grad * (round(x / scale) - x / scale)
    return 0.0, grad * ((-8 if steps < -8 else 7) - zero)


@pytest.mark.parametrize("zero", [0, 3, -8])
def test_gradients_of_one_scale(zero: int) -> None:
    generator = torch.Generator().manual_seed(zero)
    x, grad = torch.randn(200, generator=generator) * 4, torch.randn(200, generator=generator)
    got_x, got_scale = gradients(x, torch.tensor(0.5), torch.tensor(zero, dtype=torch.int32), None, grad)
    pairs = [expected_gradients(a, 0.5, zero, g) for a, g in zip(x.tolist(), grad.tolist(), strict=True)]
    assert got_x.tolist() == pytest.approx([by_x for by_x, _ in pairs])
    assert float(got_scale) == pytest.approx(sum(by_scale for _, by_scale in pairs), rel=1e-5)
    assert 0 < sum(by_x == 0 for by_x, _ in pairs) < 200


@pytest.mark.parametrize("axis", [0, 1])
def test_gradients_of_a_scale_per_channel(axis: int) -> None:
    generator = torch.Generator().manual_seed(axis)
    x, grad = torch.randn(3, 4, generator=generator) * 4, torch.randn(3, 4, generator=generator)
    scale = torch.rand(x.shape[axis], generator=generator) + 0.2
    zero = torch.zeros(x.shape[axis], dtype=torch.int32)
    got_x, got_scale = gradients(x, scale, zero, axis, grad)
    by_scale = [0.0] * len(scale)
    for place in np.ndindex(3, 4):
        channel = place[axis]
        by_x, slope = expected_gradients(float(x[place]), float(scale[channel]), 0, float(grad[place]))
        assert float(got_x[place]) == pytest.approx(by_x)
        by_scale[channel] += slope
    assert got_scale.tolist() == pytest.approx(by_scale, rel=1e-5)


def test_a_clamped_values_gradient_by_the_scale_is_its_slope() -> None:
    """Where the value is clamped the function is linear in the scale, so a finite difference is exact."""
    x, grad, zero = torch.tensor([50.0, -50.0]), torch.tensor([1.0, 2.0]), torch.tensor(0, dtype=torch.int32)
    _, got = gradients(x, torch.tensor(0.5), zero, None, grad)
    above, below = (FAKE_QUANTIZE(x, torch.tensor(s), zero, None, -8, 7) for s in (0.75, 0.25))
    assert float(got) == pytest.approx(float((grad * (above - below) / 0.5).sum()))


def test_no_gradient_is_computed_that_nobody_asked_for() -> None:
    x = torch.randn(4, requires_grad=True)
    scale = torch.tensor(0.1)
    FAKE_QUANTIZE(x, scale, torch.tensor(0, dtype=torch.int32), None, -8, 7).sum().backward()
    assert scale.grad is None


# -- registration ----------------------------------------------------------------------------------------------------

GRID = torch.tensor(0.1, requires_grad=True), torch.tensor(3, dtype=torch.int32), None, -128, 127
CHANNELS = torch.rand(3, requires_grad=True), torch.zeros(3, dtype=torch.int32), 1, -127, 127


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        (FAKE_QUANTIZE, (torch.randn(4, 3, requires_grad=True), *GRID)),
        (FAKE_QUANTIZE, (torch.randn(4, 3, requires_grad=True), *CHANNELS)),
        (FAKE_QUANTIZE_BIAS, (torch.randn(3, requires_grad=True), torch.tensor(0.1), torch.rand(3))),
        (OBSERVE, (torch.randn(3, requires_grad=True), "group", None, -128, 127, False)),
    ],
)
def test_registration_is_sound(operator: torch._ops.OpOverload, arguments: tuple[object, ...]) -> None:
    """Schema, shape function, autograd and dynamic shapes, as torch itself checks them."""
    results = torch.library.opcheck(operator, arguments)
    assert set(results.values()) == {"SUCCESS"}
