"""The same model, compressed for four targets within the same floor: each plan is the cheapest on its own target."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tersor as ts
from tersor.backends.base import Backend
from tersor.backends.clock import Clock
from tersor.backends.layer_costs import LayerCosts
from tersor.backends.onnxruntime.backend import OnnxRuntime
from tersor.compression.attempts import TRIALS
from tersor.compression.layer_costs import layer_table
from tersor.compression.measurement import Gauge
from tersor.compression.prices import filled
from tersor.ir.errors import LoweringError, PassError
from tersor.lowering import quantization, resolve
from tersor.passes.canonical.canonicalize import Canonicalize
from tersor.passes.manager import PassManager
from tersor.passes.pruning.analysis import dimensions
from tersor.passes.pruning.axes import Remaining
from tersor.passes.pruning.costs import Costs
from tersor.passes.pruning.criteria import Magnitude
from tersor.passes.pruning.layer_table import LayerTable
from tersor.passes.pruning.prune_channels import PruneChannels, Ranking
from tersor.passes.pruning.targets import Latency

TARGETS = ("onnxruntime", "tensorrt", "neon", "hls")


class Net(nn.Module):
    """A block whose activations are a table on one target and float arithmetic on another, and one that is all MACs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = layer(3, 32, 3)
        self.wide, self.narrow = layer(32, 96, 1), layer(96, 32, 1)
        self.first, self.second, self.third = layer(32, 96, 3, stride=2), layer(96, 96, 3), layer(96, 96, 3)
        self.head = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.gelu(self.stem(x))
        x = torch.relu(self.narrow(nn.functional.gelu(self.wide(x))))
        x = torch.relu(self.third(torch.relu(self.second(torch.relu(self.first(x))))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class Residual(nn.Module):
    """Two blocks with additions, wide at the start, and a head of two linear layers that is most of the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = layer(3, 32, 3)
        self.a, self.b = layer(32, 64, 3), layer(64, 32, 3)
        self.down = layer(32, 64, 3, stride=2)
        self.c, self.d = layer(64, 128, 1), layer(128, 64, 1)
        self.hidden, self.head = nn.Linear(64 * 4 * 4, 192), nn.Linear(192, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.silu(self.stem(x))
        x = torch.relu(x + self.b(torch.relu(self.a(x))))
        x = torch.relu(self.down(x))
        x = torch.relu(x + self.d(nn.functional.gelu(self.c(x))))
        x = nn.functional.avg_pool2d(x, 2)
        logits: Tensor = self.head(torch.relu(self.hidden(x.flatten(1))))
        return logits


class Separable(nn.Module):
    """Depthwise and pointwise convolutions in turn, with hard swishes. The search was not tuned on it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = layer(3, 32, 3)
        widths = ((32, 64, 1), (64, 128, 2), (128, 128, 1))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                layer(inputs, inputs, 3, stride, groups=inputs),
                nn.Hardswish(),
                layer(inputs, outputs, 1),
                nn.Hardswish(),
            )
            for inputs, outputs, stride in widths
        )
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.hardswish(self.stem(x))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class Small(nn.Module):
    """Three convolutions with a GELU between the first two."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = layer(3, 32, 1), layer(32, 64, 3, stride=2), layer(64, 32, 3)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.c(torch.relu(self.b(nn.functional.gelu(self.a(x))))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def layer(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


@dataclass(frozen=True)
class Case:
    """A network, how long it is trained, on images of what side, and the floor. trials: as of `compress`."""

    make: Callable[[], nn.Module]
    seed: int = 0
    side: int = 16
    floor: float = 0.8
    steps: int = 60
    trials: int = TRIALS


NET = Case(Net)
RESIDUAL = Case(Residual, seed=1, floor=0.95)
SEPARABLE = Case(Separable, seed=3)
CASES = (NET, RESIDUAL, SEPARABLE)
SMALL = Case(Small, seed=2, side=8, trials=40)


@cache
def given(case: Case) -> tuple[ts.Program, Tensor]:
    """Trained to tell patterns apart in noise, and images of them to judge by."""
    generator = torch.Generator().manual_seed(case.seed)
    patterns = torch.randn(10, 3, 4, 4, generator=generator)

    def images(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(0, len(patterns), (count,), generator=generator)
        coarse = patterns[labels] + torch.randn(count, 3, 4, 4, generator=generator)
        return nn.functional.interpolate(coarse, size=(case.side, case.side)), labels

    torch.manual_seed(case.seed)
    model = case.make().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(case.steps):
        x, labels = images(64)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
    held_out = images(128)[0]
    return ts.trace(model.eval(), held_out[:16], dynamic={"x": {0: "batch"}}), held_out


def likeness(case: Case, found: ts.Program) -> float:
    """The correlation of what a program gives with what the model gives, over images."""
    program, images = given(case)
    with torch.no_grad():
        ours, theirs = ((outputs - outputs.mean(0)).flatten() for outputs in (found(images), program(images)))
    return float(nn.functional.cosine_similarity(ours, theirs, dim=0))


@dataclass(frozen=True)
class Clocked(OnnxRuntime):
    """ONNX Runtime by a table of its layers that was measured once, so that a machine that is busy decides nothing."""

    case: Case = NET

    def prepared_costs(self, program: ts.Program) -> LayerCosts:
        found, whole, left = table(self.case, "onnxruntime"), filled_up(canonical(self.case)), filled_up(program)
        costs = Costs(program, dimensions(program))
        nodes = {
            node.name: found.of_node(costs, node, Remaining({})) * left[node.name] / whole[node.name]
            for node in found.nodes(costs)
        }
        return LayerCosts("ms", Clock.MEASURED, found.total(list(nodes.values())), nodes, 1e-3, "a table")


def filled_up(program: ts.Program) -> dict[str, float]:
    """By layer, how much more ONNX Runtime computes than there are weights."""
    costs, multiples = Costs(program, dimensions(program)), OnnxRuntime().preferences.multiples
    return {node.name: filled(costs, node, multiples) for node in program.graph.nodes if costs.works(node)}


def backend(case: Case, target: str) -> Backend:
    return Clocked(case=case) if target == "onnxruntime" else resolve(target)


@cache
def compressed(case: Case, target: str) -> tuple[ts.Program, str]:
    """What `compress` comes to, and its recipe: as far as the same floor allows."""
    program, images = given(case)
    out = Path(tempfile.mkdtemp(prefix="tersor-four-"))
    ts.compress(
        program,
        target=backend(case, target),
        calibration=[images[:32]],
        metric=lambda found: likeness(case, found),
        budget=ts.Budget(floor=case.floor),
        out=out,
        trials=case.trials,
    )
    found = ts.load(out / "program.tersor")
    found.example = program.example  # what costs are of
    return found, (out / "recipe.yaml").read_text()


@cache
def canonical(case: Case) -> ts.Program:
    return PassManager([Canonicalize()], progress=False).run(given(case)[0]).program


@cache
def table(case: Case, target: str) -> LayerTable:
    """What layers of the model cost on a target, quantized as that likes it."""
    found = resolve(target)
    passes = quantization(found.preferences, [given(case)[1][:32]])
    quantized = PassManager(passes, progress=False).run(given(case)[0]).program
    return layer_table(canonical(case), Gauge(found).costs(quantized))


def cost(case: Case, program: ts.Program, target: str) -> float | None:
    """What a plan costs on a target; None where the target refuses it."""
    try:
        return backend(case, target).layer_costs(program).total
    except (LoweringError, PassError):
        return None


def channels(program: ts.Program) -> tuple[int, ...]:
    return tuple(tensor.shape[0] for name, tensor in program.parameters().items() if name.endswith("0.weight"))


def costs(case: Case, target: str) -> tuple[float, dict[str, float]]:
    """What the target's own plan costs there, and those of the others. A plan that is refused counts as dear."""
    found = {other: cost(case, compressed(case, other)[0], target) for other in TARGETS}
    own = found.pop(target)
    assert own is not None
    return own, {other: math.inf if found is None else found for other, found in found.items()}


def test_cuts_move_to_the_layer_that_is_dear_on_the_target() -> None:
    """GELU is a table on NEON and floats in ONNX Runtime, so its channels go there, and those of convolutions here."""
    left, case = {}, Case(Net, steps=5)
    for target in ("onnxruntime", "neon"):
        step = PruneChannels(Latency(0.75, table(case, target)), Magnitude(normalized=True), Ranking.COST, multiple=8)
        left[target] = channels(PassManager([step], progress=False).run(canonical(case)).program)
    (_, wide, _, _, second, _), (_, wide_on_neon, _, _, second_on_neon, _) = left["onnxruntime"], left["neon"]
    assert wide < wide_on_neon
    assert second > second_on_neon


def four_plans(case: Case) -> None:
    """All four keep the floor and differ, and each is the best on its own target.

    That is, it costs less than any of the others; or as much, where a target computes whole tiles, and is closer to the
    model.
    """
    found = {target: compressed(case, target) for target in TARGETS}
    assert len({text[text.index("passes:") :] for _, text in found.values()}) == len(TARGETS)
    assert len({channels(program) for program, _ in found.values()}) == len(TARGETS)
    alike = {target: likeness(case, program) for target, (program, _) in found.items()}
    assert all(found >= case.floor for found in alike.values())
    for target in TARGETS:
        own, others = costs(case, target)
        for other, theirs in others.items():
            tie = own == pytest.approx(theirs, rel=1e-6) and alike[target] > alike[other]
            assert own < theirs or tie, (target, own, others)


def test_each_plan_of_a_small_network_is_the_best_on_its_own_target() -> None:
    four_plans(SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.make.__name__)
def test_each_plan_is_the_best_on_its_own_target(case: Case) -> None:
    four_plans(case)
