"""The equality on networks that put channels together in ways of their own, also after other passes and from ONNX."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

import tersor as ts
from tersor.ir.example import example_of
from tersor.passes.pruning.analysis import dimensions

from .networks import NETWORKS
from .silencing import check


@cache
def traced(name: str) -> ts.Program:
    torch.manual_seed(0)
    model, args = NETWORKS[name]()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_()
    return ts.trace(model.eval(), args)


@pytest.mark.parametrize("name", NETWORKS)
def test_equality(name: str) -> None:
    program = traced(name)
    for seed in range(3):
        check(program, example_of(program), seed, 0.5 if seed == 0 else None, rtol=5e-4)


FREE = {
    "dense": 4, "unet": 6, "shuffle": 2, "super_resolution": 2, "mixer": 3, "einsum": 3, "excited": 2, "tied": 1,
    "volumes": 1, "signals": 1, "written": 3, "encoder": 7,
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_axes_are_not_pinned_for_nothing(name: str) -> None:
    assert len(dimensions(traced(name)).prunable) >= FREE[name]


@pytest.mark.parametrize("name", NETWORKS)
def test_equality_after_other_passes(name: str) -> None:
    program = ts.PassManager([ts.Canonicalize(), ts.FoldBatchNorm()]).run(traced(name)).program
    check(program, example_of(program), 1, 0.5, rtol=5e-4)


# ONNX emission has no rule for pixel_unshuffle and glu.
LOWERED = [name for name in NETWORKS if name not in ("super_resolution", "signals")]


@pytest.mark.slow
@pytest.mark.parametrize("name", LOWERED)
def test_pruned_programs_lower_and_come_back_from_onnx(name: str, tmp_path: Path) -> None:
    program = traced(name)
    pruned = check(program, example_of(program), 2, 0.4, rtol=5e-4)
    artifact = ts.lower(pruned, "onnxruntime", tmp_path)
    inputs = example_of(program)
    for ours, theirs in zip(artifact.run_flat(inputs), pruned.run(inputs), strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-3, atol=1e-4)
    loaded = ts.load_onnx(tmp_path / "model.onnx")
    check(loaded, inputs, 3, 0.3, rtol=5e-4)


def test_what_pins_is_named() -> None:
    program = traced("signals")
    pins = {str(pin) for leaf in dimensions(program).leaves for pin in leaf.pins}
    assert any("aten.gru" in pin and "no rule" in pin for pin in pins)
