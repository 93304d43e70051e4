"""The graph before and after lowering, what is refused, what stays float and why, and what the program then can do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tersor.cli import main
from tersor.frontends.torch_export import trace
from tersor.ir.errors import PassError, VerificationError
from tersor.ir.program import Program
from tersor.ir.sparsity import Unstructured
from tersor.ir.stage import Stage
from tersor.passes.integer.float_islands import float_islands
from tersor.passes.integer.lower_to_integer import LowerToInteger
from tersor.passes.manager import PassManager
from tersor.passes.quantization.calibrate import Calibrate
from tersor.passes.quantization.insert_fake_quant import InsertFakeQuant
from tersor.passes.quantization.placement import Coverage

from .numpy_reference import Layers, quantized

IMAGE = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def small(**options: Any) -> Program:
    """A convolution with relu, a residual sum with a look-up, a mean and a linear."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = torch.relu(m.conv(x))
        logits: Tensor = m.linear((y + torch.sigmoid(y)).mean((2, 3)))
        return logits

    torch.manual_seed(0)
    return quantized(Layers(forward, conv=nn.Conv2d(3, 4, 3, padding=1), linear=nn.Linear(4, 2)), IMAGE, **options)


def operators(program: Program) -> list[str]:
    return [str(getattr(n.target, "_opname", n.target)) for n in program.graph.nodes if n.op == "call_function"]


def body(program: Program) -> list[str]:
    """The lines of the text, names of tensors and numbers left out."""
    return [line.split(" = ")[1].split("(")[0] for line in str(program).splitlines() if " = " in line]


# -- the graph -------------------------------------------------------------------------------------------------------


def test_the_graph_before_and_after() -> None:
    program = small(dynamic={"inputs_0": {0: "batch"}})
    assert body(program) == [
        "tersor.fake_quantize", "tersor.fake_quantize", "tersor.fake_quantize", "tersor.fake_quantize_bias",
        "aten.conv2d", "aten.relu", "tersor.fake_quantize", "aten.sigmoid", "tersor.fake_quantize", "aten.add.Tensor",
        "tersor.fake_quantize", "aten.mean.dim", "tersor.fake_quantize",
        "tersor.fake_quantize_bias", "aten.linear", "tersor.fake_quantize",
    ]  # fmt: skip
    lowered = LowerToInteger()(program)
    assert lowered.stage is Stage.INTEGER
    assert body(lowered) == [
        "tersor.quantize", "tersor.int_conv", "tersor.requantize", "tersor.int_lookup", "tersor.int_add",
        "tersor.int_sum", "tersor.requantize", "tersor.int_linear", "tersor.requantize", "tersor.dequantize",
    ]  # fmt: skip
    text = str(lowered)
    assert "%int_conv : int32[batch, 4, 6, 6] = tersor.int_conv(%quantize, @conv.weight, @conv2d.bias_int32" in text
    assert "%requantize : int8[batch, 4, 6, 6]" in text


def test_weights_keep_their_names_and_their_sparsity() -> None:
    program = small()
    name = next(n for n in program.tensors() if n.endswith("conv.weight"))
    weight = program.tensor(name).detach().clone()
    weight[:, 0] = 0
    program.set_tensor(name, weight)
    program.sparsity[name] = Unstructured(2 / 3)
    lowered = LowerToInteger()(program.verify())
    assert lowered.tensor(name).dtype is torch.int8
    assert lowered.sparsity == {name: Unstructured(2 / 3)}
    assert bool((lowered.tensor(name)[:, 0] == 0).all())


def test_the_given_program_stays() -> None:
    program = small()
    text = str(program)
    LowerToInteger()(program)
    assert str(program) == text


def test_one_value_on_two_grids_is_requantized_for_each() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.conv(x)
        return torch.cat([y, m.other(x)], 1), y * 2.0

    layers = {name: nn.Conv2d(3, 4, 1) for name in ("conv", "other")}
    program = quantized(Layers(forward, **layers), IMAGE)
    lowered = LowerToInteger()(program)
    assert not float_islands(lowered)
    for ours, theirs in zip(lowered(IMAGE), program(IMAGE), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_a_clamp_of_a_float_narrows_the_grid() -> None:
    program = quantized(Layers(lambda m, x: m.conv(torch.relu(x)), conv=nn.Conv2d(3, 4, 1)), IMAGE)
    lowered = LowerToInteger()(program)
    assert operators(lowered) == ["quantize", "int_conv", "requantize", "dequantize"]
    torch.testing.assert_close(lowered(IMAGE), program(IMAGE), rtol=0, atol=1e-6)


def test_a_linear_without_a_grid_behind_gives_the_floats_of_its_accumulators() -> None:
    model = Layers(lambda m, x: m.linear(x), linear=nn.Linear(6, 4))
    torch.manual_seed(0)
    program = Calibrate([(IMAGE,)])(InsertFakeQuant(coverage=Coverage.FASTEST)(trace(model, (IMAGE,))))
    lowered = LowerToInteger()(program)
    assert operators(lowered) == ["quantize", "int_linear", "dequantize"]
    torch.testing.assert_close(lowered(IMAGE), program(IMAGE), rtol=1e-5, atol=1e-6)


def test_the_manager_checks_it_as_any_pass() -> None:
    result = PassManager([LowerToInteger()]).run(small())
    assert result.program.stage is Stage.INTEGER
    assert result.report.rows[-1].notes[0].startswith("1 int_conv, 1 int_lookup, 1 int_add")


# -- what is float ---------------------------------------------------------------------------------------------------


def reasons(forward: Any, *inputs: Tensor, coverage: Coverage = Coverage.EVERYTHING, **layers: nn.Module) -> list[str]:
    program = trace(Layers(forward, **layers), inputs or (IMAGE,))
    program = LowerToInteger()(Calibrate([inputs or (IMAGE,)])(InsertFakeQuant(coverage=coverage)(program)))
    return [f"{island.node.name}: {island.reason}" for island in float_islands(program)]


def test_what_has_no_integer_form_is_named_with_the_reason() -> None:
    found = reasons(lambda m, x: m.b(torch.cumsum(m.a(x), 1)), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1))
    assert found == ["cumsum: cumsum has no integer form"]


def test_what_is_not_on_grids_says_what_to_do() -> None:
    found = reasons(lambda m, x: m.a(torch.softmax(x, 1)), coverage=Coverage.FASTEST, a=nn.Conv2d(3, 4, 1))
    hint = "Quantize(..., coverage=Coverage.EVERYTHING)"
    assert found == [f"softmax: its input %inputs_0 is on no integer grid: {hint}"]


def test_double_precision_stays() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.a(x).double().tanh().sum(1)  # type: ignore[no-any-return]

    found = reasons(forward, a=nn.Conv2d(3, 4, 1))
    assert any("tanh: it computes float64, and integers stand for float32" in line for line in found)


def test_a_sum_over_a_dynamic_size_has_no_bound_and_stays_float() -> None:
    x = torch.randn(2, 5, 8)
    model = Layers(lambda m, x: m.a(x).transpose(1, 2) @ m.a(x), a=nn.Linear(8, 8))
    program = quantized(model, x, dynamic={"inputs_0": {1: "length"}})
    (island,) = float_islands(LowerToInteger()(program))
    assert island.reason == "it sums over a dimension of dynamic size, so its accumulator has no bound"


# -- refusals --------------------------------------------------------------------------------------------------------


def test_an_accumulator_that_could_overflow_is_refused_with_its_node() -> None:
    layer = nn.Linear(70_000, 1)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    x = torch.randn(1, 70_000)
    program = quantized(Layers(lambda m, x: m.layer(x), layer=layer), x)
    with pytest.raises(PassError, match="can overflow int32") as caught:
        LowerToInteger()(program)
    assert caught.value.node == "linear"
    assert "numpy_reference.py" in str(caught.value)  # the line of the model
    assert "skip=('linear',)" in str(caught.value.hint)


def test_as_many_small_weights_are_taken() -> None:
    """The bound comes from the weights, not from their number."""
    layer = nn.Linear(70_000, 1)
    with torch.no_grad():
        layer.weight.fill_(1e-4)
        layer.weight[0, 0] = 1.0
    x = torch.randn(1, 70_000)
    program = quantized(Layers(lambda m, x: m.layer(x), layer=layer), x)
    assert "int_linear" in operators(LowerToInteger()(program))


def test_observers_without_a_grid_are_refused() -> None:
    program = InsertFakeQuant()(trace(Layers(lambda m, x: m.a(x), a=nn.Conv2d(3, 4, 1)), (IMAGE,)))
    with pytest.raises(PassError, match="never calibrated"):
        LowerToInteger()(program)


def test_a_planted_weight_that_overflows_is_found_by_the_verifier() -> None:
    lowered = LowerToInteger()(small())
    name = next(n for n in lowered.tensors() if n.endswith("bias_int32"))
    lowered.set_tensor(name, torch.full_like(lowered.tensor(name), 2**31 - 1))
    with pytest.raises(VerificationError, match="can overflow int32"):
        lowered.verify()


# -- what an integer program can do ----------------------------------------------------------------------------------


def test_it_runs_with_any_batch() -> None:
    lowered = LowerToInteger()(small(dynamic={"inputs_0": {0: "batch"}}))
    more = torch.randn(7, 3, 6, 6)
    whole = lowered(more)
    assert torch.equal(whole, torch.cat([lowered(more[i : i + 1]) for i in range(7)]))


def test_it_is_saved_shown_and_costed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = small()
    lowered = LowerToInteger()(program)
    path = lowered.save(tmp_path / "program.tersor")
    assert torch.equal(Program.load(path)(IMAGE), lowered(IMAGE))
    assert lowered.cost().macs == program.cost().macs == 2 * 36 * 4 * 27 + 2 * 8
    with pytest.raises(SystemExit, match="0"):
        main(["show", str(path)])
    assert "tersor.int_conv" in capsys.readouterr().out
