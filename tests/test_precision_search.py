"""Mixed precision: the solver against trying everything, plans as files, what a plan predicts against what it gives."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tersor as ts
from tersor.ir.errors import MissingDependencyError, PassError, RecipeError
from tersor.passes.compare import difference
from tersor.passes.quantization.apply_precision import ApplyPrecision
from tersor.passes.quantization.precision_plan import Precision, PrecisionPlan
from tersor.precision_search import LayerLatency, Option, choose, search_precision


class Net(nn.Module):
    """A convolution and linears, one of which has outliers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.a, self.b, self.c = nn.Linear(8, 64), nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x)).mean((2, 3))
        y: Tensor = self.c(torch.tanh(self.b(nn.functional.gelu(self.a(x)))))
        return y


def net() -> tuple[ts.Program, list[Tensor]]:
    torch.manual_seed(0)
    batches = [torch.randn(8, 3, 10, 10) for _ in range(4)]
    return ts.trace(Net().eval(), (batches[0],), dynamic={"x": {0: "batch"}}), batches


numbers = st.floats(0.01, 100)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=4), min_size=1, max_size=5), numbers)
def test_the_solver_finds_what_trying_everything_finds(layers: list[list[tuple[float, float]]], budget: float) -> None:
    kinds = list(Precision)
    options = {
        str(i): tuple(Option(kinds[k], noise, cost) for k, (noise, cost) in enumerate(found))
        for i, found in enumerate(layers)
    }
    fitting = [
        sum(option.cost for option in choice)
        for choice in itertools.product(*options.values())
        if sum(option.noise for option in choice) <= budget
    ]
    if not fitting:
        with pytest.raises(PassError, match="exact enough"):
            choose(options, budget)
        return
    chosen = choose(options, budget)
    assert set(chosen) == set(options)
    assert sum(option.noise for option in chosen.values()) <= budget * (1 + 1e-6)
    assert sum(option.cost for option in chosen.values()) <= min(fitting) * (1 + 1e-6)


@pytest.mark.parametrize("sqnr", [20.0, 30.0, 40.0])
def test_a_plan_keeps_its_budget_and_costs_what_it_says(sqnr: float) -> None:
    program, batches = net()
    plan = search_precision(program, batches, sqnr=sqnr)
    assert plan.sqnr is not None
    assert plan.sqnr >= sqnr
    mixed = ts.PassManager([ApplyPrecision(plan, batches)]).run(program).program
    with torch.no_grad():
        found = difference([program(b) for b in batches], [mixed(b) for b in batches]).sqnr
    assert found > sqnr - 3
    weights = sum(program.tensor(f"{name}.weight").numel() for name in ("conv", "a", "b", "c"))
    assert plan.float_cost == 4 * weights
    assert plan.cost is not None
    stored = mixed.cost().parameter_bytes
    assert abs(stored - plan.cost) < 0.15 * stored + 700


def test_a_tighter_budget_costs_more() -> None:
    program, batches = net()
    costs = [search_precision(program, batches, sqnr=sqnr).cost or 0.0 for sqnr in (10.0, 30.0, 45.0, 80.0)]
    assert costs == sorted(costs)
    assert costs[0] < costs[-1]
    every = search_precision(program, batches, sqnr=200.0)
    assert set(every.layers.values()) == {Precision.FLOAT32}
    assert not ts.PassManager([ApplyPrecision(every, batches)]).run(program).program.cost().parameter_bytes % 4


def test_the_sensitive_layer_stays_exact() -> None:
    program, batches = net()
    with torch.no_grad():
        weight = program.tensor("b.weight").clone()
        weight[:, ::7] *= 100
        program.set_tensor("b.weight", weight)
    plan = search_precision(program, batches, sqnr=25.0)
    order = list(Precision)
    assert order.index(plan.layers["linear_1"]) < order.index(plan.layers["linear_2"])


def test_a_metric_as_the_budget() -> None:
    program, batches = net()
    with torch.no_grad():
        exact = [program(b).argmax(1) for b in batches]

    def agreement(candidate: ts.Program) -> float:
        with torch.no_grad():
            return (
                sum(float((candidate(b).argmax(1) == e).float().mean()) for b, e in zip(batches, exact, strict=True))
                / 4
            )

    plan = search_precision(program, batches, metric=agreement, drop=0.05)
    assert agreement(ts.PassManager([ApplyPrecision(plan, batches)]).run(program).program) >= 0.95
    with pytest.raises(PassError, match="give one budget"):
        search_precision(program, batches)


def test_latency_is_measured_on_the_target_and_once_for_equal_layers() -> None:
    program, batches = net()
    cost = LayerLatency("onnxruntime", seconds=0.01)
    precisions = (Precision.FLOAT32, Precision.INT8)
    plan = search_precision(program, batches, sqnr=30.0, cost=cost, precisions=precisions)
    assert plan.unit == "ms on onnxruntime"
    assert len(cost._known) == 4 * len(precisions)
    assert all(value > 0 for value in cost._known.values())


def test_a_plan_is_read_edited_and_replayed(tmp_path: Path) -> None:
    program, batches = net()
    plan = search_precision(program, batches, sqnr=30.0)
    path = plan.save(tmp_path / "plan.yaml")
    again = PrecisionPlan.load(path)
    assert again.layers == plan.layers
    assert again.cost == pytest.approx(plan.cost, rel=1e-4)
    text = path.read_text()
    assert f"  linear_1: {plan.layers['linear_1'].value}" in text
    edited = {name: "int8" if name == "linear_1" else "float32" for name in plan.layers}
    path.write_text("layers:\n" + "".join(f"  {name}: {value}\n" for name, value in edited.items()))
    mixed = ts.PassManager([ApplyPrecision(str(path), batches)]).run(program).program
    quantizers = [line for line in str(mixed).splitlines() if "fake_quantize(@" in line]
    assert len(quantizers) == 1
    assert "@b.weight" in quantizers[0]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("layers: [a]", "not a plan"),
        ("layers: {conv2d: int7}", "no such precision"),
        ("layers: {a: int8}\ncost: cheap", "not a number"),
        ("layers: {a: [", "malformed"),
    ],
)
def test_a_bad_plan_is_refused(text: str, wrong: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=wrong):
        PrecisionPlan.load(path)
    with pytest.raises(RecipeError, match="cannot be read"):
        PrecisionPlan.load(tmp_path / "none.yaml")


def test_a_plan_for_another_model_is_refused() -> None:
    program, batches = net()
    with pytest.raises(PassError, match="no layer here"):
        ts.PassManager([ApplyPrecision(PrecisionPlan({"linear_9": Precision.INT8}), batches)]).run(program)


def test_without_the_solver_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(MissingDependencyError, match="scipy"):
        choose({"a": (Option(Precision.FLOAT32, 0.0, 1.0),)}, 0.1)


def test_bytes_of_a_layer() -> None:
    program, batches = net()
    plan = search_precision(program, batches, sqnr=5.0, precisions=(Precision.FLOAT32, Precision.INT4_WEIGHTS))
    assert plan.layers["conv2d"] is Precision.FLOAT32
    blocks = 64 * 1 + 64 * 2 + 10 * 2
    values = 8 * 64 + 64 * 64 + 64 * 10
    assert plan.cost == pytest.approx(4 * 3 * 8 * 9 + values / 2 + 4 * blocks)


def test_convolutions_can_have_weights_of_four_bits(tmp_path: Path) -> None:
    """The only way to less than a byte a weight for them; the file stores as much."""
    program, batches = net()
    plan = search_precision(program, batches, sqnr=8.0, precisions=(Precision.FLOAT32, Precision.INT8, Precision.W4A8))
    assert plan.layers["conv2d"] is Precision.W4A8
    plan = PrecisionPlan({**plan.layers, "linear": Precision.INT8})
    mixed = ts.PassManager([ApplyPrecision(plan, batches)]).run(program).program
    grids = {str(n.args[0].target): n.args[4:6] for n in mixed.graph.nodes if "fake_quantize.default" in str(n.target)
             and n.args[0].op == "get_attr"}  # fmt: skip
    assert grids["conv.weight"] == (-7, 7)
    assert grids["a.weight"] == (-127, 127)
    stored = {
        t.name: t.data_type for t in onnx.load(ts.lower(mixed, out=tmp_path).path / "model.onnx").graph.initializer
    }
    assert stored["conv.weight"] == onnx.TensorProto.INT4
    assert stored["a.weight"] == onnx.TensorProto.INT8


def test_from_the_shell_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from tersor.cli import cli

    program, _ = net()
    program.save(tmp_path / "net.tersor")
    (tmp_path / "some_data.py").write_text(
        "import torch\n\ndef batches():\n    return [torch.randn(8, 3, 10, 10) for _ in range(3)]\n"
    )
    recipe = tmp_path / "mixed.yaml"
    recipe.write_text("passes:\n  - apply_precision: {plan: plan.yaml}\n")
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(cli, ["plan", "net.tersor", "-d", "some_data:batches", "-o", "plan.yaml"])
    assert found.exit_code == 0, found.output
    assert "linear_1: " in found.output
    arguments = ["compress", "net.tersor", "-r", "mixed.yaml", "-d", "some_data:batches", "-o", "out"]
    found = CliRunner().invoke(cli, arguments)
    assert found.exit_code == 0, found.output
