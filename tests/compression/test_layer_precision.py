"""Precision layer by layer: the budget that no uniform precision meets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tersor as ts
from tersor.ir.errors import PassError
from tersor.lowering import quantization, resolve
from tersor.run_record import RunRecord

LIMIT, FLOOR = 0.22, 0.9


def model() -> ts.Program:
    """Four layers, of which one has columns so large that 4 bits lose the others."""
    torch.manual_seed(0)
    uneven = nn.Linear(64, 64)
    layers = nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), uneven, nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32)
    )
    with torch.no_grad():
        uneven.weight[:, ::8] *= 12
    return ts.trace(layers.eval(), rows()[:8], dynamic={"input": {0: "batch"}})


def rows() -> Tensor:
    return torch.randn(128, 64, generator=torch.Generator().manual_seed(1))


def likeness(found: ts.Program, given: ts.Program) -> float:
    """One less the error over the outputs' size."""
    with torch.no_grad():
        wanted = given(rows())
        return float(1 - (found(rows()) - wanted).norm() / wanted.norm())


def ran(*passes: ts.Pass) -> ts.Program:
    return ts.PassManager(passes, progress=False).run(model()).program


def test_a_mix_meets_bytes_and_a_floor_that_no_uniform_precision_meets(tmp_path: Path) -> None:
    given, data = model(), [rows()[:64]]
    limit = LIMIT * given.cost().parameter_bytes
    int8 = ran(*quantization(resolve("onnxruntime").preferences, data))
    int4 = ran(ts.QuantizeWeights(4, calibration=data))
    assert int8.cost().parameter_bytes > limit
    assert int4.cost().parameter_bytes <= limit
    assert likeness(int4, given) < FLOOR <= likeness(int8, given)

    budget = ts.Budget(bytes=f"{LIMIT}x", floor=FLOOR)
    ts.compress(given, calibration=data, metric=lambda found: likeness(found, given), budget=budget, out=tmp_path)
    found = ts.load(tmp_path / "program.tersor")
    assert found.cost().parameter_bytes <= limit
    assert likeness(found, given) >= FLOOR
    (chosen,) = (point for point in RunRecord.load(tmp_path).points if point.chosen)
    assert "precision by layer: 3 int4_weights, 1 int8_weights" in chosen.name

    passes = ts.load_recipe(tmp_path / "recipe.yaml", data)
    again = ts.PassManager(passes, progress=False).run(model()).program
    assert found.tensors().keys() == again.tensors().keys()
    for name, tensor in found.tensors().items():
        assert torch.equal(tensor, again.tensor(name)), name


def test_the_mix_within_a_cost_is_the_most_exact_of_all() -> None:
    """Against every choice there is."""
    from itertools import product

    from tersor.passes.quantization.calibration_data import Replay
    from tersor.passes.quantization.precision_plan import Precision
    from tersor.precision_search import WeightBytes, most_exact, weigh

    kinds = (Precision.FLOAT32, Precision.INT8, Precision.INT4_WEIGHTS)
    options = weigh(model(), Replay([rows()[:64]]), kinds, WeightBytes())
    choices = list(product(*options.values()))
    for bound in (14_000.0, 20_000.0, 40_000.0):
        found = most_exact(options, bound).values()
        allowed = [choice for choice in choices if sum(option.cost for option in choice) <= bound]
        least = min(sum(option.noise for option in choice) for choice in allowed)
        assert sum(option.cost for option in found) <= bound
        assert sum(option.noise for option in found) == pytest.approx(least, rel=1e-4)
    with pytest.raises(PassError, match="so cheap"):
        most_exact(options, 100.0)
