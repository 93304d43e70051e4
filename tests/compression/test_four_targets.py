"""The same model, compressed for four targets within the same budget."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tersor as ts
from tersor.compression.layer_costs import layer_table
from tersor.compression.measurement import Gauge
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
FLOOR = 0.4


class Net(nn.Module):
    """A block whose activations are a table on one target and float arithmetic on another, and one that is all MACs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = self.layer(3, 32, 3)
        self.wide, self.narrow = self.layer(32, 96, 1), self.layer(96, 32, 1)
        self.first, self.second, self.third = (
            self.layer(32, 96, 3, stride=2),
            self.layer(96, 96, 3),
            self.layer(96, 96, 3),
        )
        self.head = nn.Linear(96, 10)

    def layer(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.gelu(self.stem(x))
        x = torch.relu(self.narrow(nn.functional.gelu(self.wide(x))))
        x = torch.relu(self.third(torch.relu(self.second(torch.relu(self.first(x))))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


@lru_cache
def given() -> tuple[ts.Program, Tensor]:
    """Its batch norms know the data, so that every layer's channels vary."""
    torch.manual_seed(0)
    images = nn.functional.interpolate(torch.randn(64, 3, 4, 4), size=(16, 16))
    model = Net()
    with torch.no_grad():
        for _ in range(30):
            model.train()(images)
    return ts.trace(model.eval(), images[:16], dynamic={"x": {0: "batch"}}), images


def likeness(found: ts.Program) -> float:
    """The correlation of what a program gives with what the model gives, over images."""
    program, images = given()
    with torch.no_grad():
        ours, theirs = ((outputs - outputs.mean(0)).flatten() for outputs in (found(images), program(images)))
    return float(nn.functional.cosine_similarity(ours, theirs, dim=0))


@lru_cache
def compressed(target: str) -> tuple[ts.Program, str]:
    """What `compress` comes to, and its recipe: as far as the same floor allows."""
    program, images = given()
    out = Path(tempfile.mkdtemp(prefix="tersor-four-"))
    budget = ts.Budget(floor=FLOOR)
    ts.compress(program, target=target, calibration=[images[:32]], metric=likeness, budget=budget, out=out)
    found = ts.load(out / "program.tersor")
    found.example = program.example  # what costs are of
    return found, (out / "recipe.yaml").read_text()


@lru_cache
def canonical() -> ts.Program:
    return PassManager([Canonicalize()], progress=False).run(given()[0]).program


@lru_cache
def table(target: str) -> LayerTable:
    """What layers of the model cost on a target, quantized as that likes."""
    backend = resolve(target)
    passes = quantization(backend.preferences, [given()[1][:32]])
    quantized = PassManager(passes, progress=False).run(given()[0]).program
    return layer_table(canonical(), Gauge(backend).costs(quantized))


def cost(program: ts.Program, target: str) -> float | None:
    """What a plan costs on a target; None where the target refuses it.

    Where costs are measured, a machine that is busy would decide: there the table that was measured once counts.
    """
    if target == "onnxruntime":
        return table(target)(Costs(program, dimensions(program)), Remaining({}))
    try:
        return resolve(target).layer_costs(program).total
    except (LoweringError, PassError):
        return None


def channels(program: ts.Program) -> tuple[int, ...]:
    return tuple(tensor.shape[0] for name, tensor in program.parameters().items() if name.endswith("0.weight"))


def test_cuts_move_to_the_layer_that_is_dear_on_the_target() -> None:
    """GELU is a table on NEON and floats in ONNX Runtime, so its channels go there, and those of convolutions here."""
    left = {}
    for target in ("onnxruntime", "neon"):
        step = PruneChannels(Latency(0.75, table(target)), Magnitude(normalized=True), Ranking.COST, multiple=8)
        left[target] = channels(PassManager([step], progress=False).run(canonical()).program)
    (_, wide, _, _, second, _), (_, wide_on_neon, _, _, second_on_neon, _) = left["onnxruntime"], left["neon"]
    assert wide < wide_on_neon
    assert second > second_on_neon


@pytest.mark.slow
def test_four_targets_get_four_plans() -> None:
    found = {target: compressed(target) for target in TARGETS}
    passes = {text[text.index("passes:") :] for _, text in found.values()}
    assert len(passes) == 4
    assert len({channels(program) for program, _ in found.values()}) == 4
    assert all(likeness(program) >= FLOOR for program, _ in found.values())


@pytest.mark.slow
def test_the_plan_for_onnxruntime_is_the_best_there() -> None:
    """All keep the same floor. A plan that the target refuses counts as beaten."""
    own, others = on_the_clock_of("onnxruntime")
    assert all(cost is None or cost > own for cost in others.values()), (own, others)


@pytest.mark.slow
def test_no_plan_is_clearly_better_on_a_gpu() -> None:
    """Launches decide on a GPU so small a model: plans come out alike."""
    own, others = on_the_clock_of("tensorrt")
    assert all(cost is None or cost > 0.98 * own for cost in others.values()), (own, others)


@pytest.mark.slow
def test_the_plan_for_neon_beats_those_for_accelerators() -> None:
    own, others = on_the_clock_of("neon")
    del others["onnxruntime"]
    assert all(cost is None or cost > 1.1 * own for cost in others.values()), (own, others)


def on_the_clock_of(target: str) -> tuple[float, dict[str, float | None]]:
    """What the target's own plan costs there, and what those of the others do."""
    found = {other: cost(compressed(other)[0], target) for other in TARGETS}
    own = found.pop(target)
    assert own is not None
    return own, found
