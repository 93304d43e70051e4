"""Folding: legal, within the budget, editable, and refused with the nearest choice."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from tersor.backends.hls.design import Fold, choices, design, follows
from tersor.backends.hls.fifos import size_fifos
from tersor.backends.hls.folding import fastest, fold_for, for_cycles, from_json, to_json
from tersor.backends.hls.graph import Graph, MatrixVector, sparse_steps
from tersor.backends.hls.parts import PARTS, Part, find_part
from tersor.backends.hls.schedule import last_pixel, schedule, turns
from tersor.backends.hls.simulate import Deadlock, simulate
from tersor.ir.errors import LoweringError
from tersor.ir.quantization import INT4

from .architectures import ARCHITECTURES
from .models import DsCnn, MobileNetV2, ResNet, graph_of, jet_tagger, quantized


@cache
def graph(name: str) -> Graph:
    if name == "mlp":
        return graph_of(quantized(jet_tagger(), (1, 16)))
    if name == "wide":
        return graph_of(quantized(nn.Sequential(nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 8)), (1, 512)))
    if name in ARCHITECTURES:
        make, shape = ARCHITECTURES[name]
        return graph_of(quantized(make(), shape))
    if name == "inverted":  # zero weights among those of 4 bits, so that units have static schedules
        return graph_of(quantized(MobileNetV2(((1, 4, 1, 1), (4, 8, 2, 2), (4, 12, 1, 1)), 16), (1, 3, 24, 24), INT4))
    model = ResNet(4) if name == "residual" else DsCnn(6, 1)
    return graph_of(quantized(model, (1, 3, 12, 12) if name == "residual" else (1, 1, 49, 10)))


MODELS = ("mlp", "residual", "depthwise")
OTHERS = ("inverted", "shuffled", "mixed along positions", "moved")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("part", PARTS)
def test_the_fastest_fits_and_is_legal(name: str, part: str) -> None:
    found = fastest(graph(name), PARTS[part])
    assert found.excess(PARTS[part]) == {}
    for layer in graph(name).layers:
        if not follows(layer):
            legal, fold = choices(layer), found.design.folds[layer.name]
            assert fold.pe in legal.pe
            assert fold.simd in legal.simd


@pytest.mark.parametrize("name", MODELS + OTHERS)
@pytest.mark.parametrize("share", [2, 7, 60])
def test_cycles_by_formula_are_those_of_the_simulation(name: str, share: int) -> None:
    """Within 1 %, however parallel it is; every stream is read as often as it is written."""
    least = fold_for(graph(name), None, PARTS["u50"]).cycles
    made = fold_for(graph(name), max(least // share, 8), PARTS["u50"]).design
    for process in made.processes:
        plan = schedule(process)
        assert plan.turns == turns(process)
        beats = [wire.beats for wire in (*process.reads, *process.writes)]
        assert [len(places) for places in (*plan.reads, *plan.writes)] == beats
        assert all((np.diff(places) > 0).all() for places in (*plan.reads, *plan.writes))
        if isinstance(process.layer, MatrixVector):
            assert last_pixel(process.layer, process.fold, process.step_count) == plan.turns - 1 - plan.reads[0][-1]
    found = size_fifos(made)
    assert abs(found.timing.interval - found.formula) <= 0.01 * found.formula
    assert found.timing.latency >= max(map(turns, made.processes))


@pytest.mark.parametrize("name", MODELS)
def test_both_simulations_agree(name: str, compiler: str) -> None:
    made = fold_for(graph(name), 2000, PARTS["u50"]).design
    depths = {wire.stream.name: 3 + index % 40 for index, wire in enumerate(made.wires)}
    outcomes = []
    for compiled in (False, True):
        try:
            outcomes.append(simulate(made, depths, 2, compiled))
        except Deadlock as stuck:
            outcomes.append(stuck.streams)  # type: ignore[arg-type]  # compared, whatever it is
    assert outcomes[0] == outcomes[1]


def test_a_residual_with_a_shallow_fifo_is_a_deadlock_and_the_chosen_depth_is_none() -> None:
    made = fold_for(graph("residual"), None, PARTS["u50"]).design
    found = size_fifos(made)
    with pytest.raises(Deadlock, match="copy"):
        simulate(made, {}, 1)
    deep = {name for name, depth in found.depths.items() if depth > 2}
    assert simulate(made, found.depths, 4).interval == found.timing.interval
    joins = [name for name in deep if "copy_2" in name or "requantize" in name]
    assert joins


@pytest.mark.parametrize("name", MODELS)
def test_fewer_cycles_than_asked(name: str) -> None:
    part = PARTS["zu9eg"]
    best = fastest(graph(name), part).cycles
    for target in (best, best * 3, best * 50):
        assert for_cycles(graph(name), target, part).cycles <= target


def test_too_few_cycles_name_the_nearest() -> None:
    with pytest.raises(LoweringError, match=r"cycles=\d+, the fewest that fit"):
        for_cycles(graph("residual"), 10, PARTS["zynq7020"])


def test_a_model_that_does_not_fit_says_what_and_by_how_much() -> None:
    tiny = replace(PARTS["zynq7020"], lut=600, name="tiny")
    with pytest.raises(LoweringError) as raised:
        fastest(graph("residual"), tiny)
    text = str(raised.value)
    assert "times its lut" in text
    assert "prune to about" in text


def test_weights_that_do_not_fit_are_streamed() -> None:
    small = Part("small", "none", 200_000, 2_000, 40, 100, 1024)
    found = fold_for(graph("wide"), 2_000, small)
    assert "bram" not in found.excess(small)
    assert any(fold.streamed for fold in found.design.folds.values())
    roomy = fold_for(graph("wide"), 2_000, PARTS["zu9eg"])
    assert not any(fold.streamed for fold in roomy.design.folds.values())


def test_a_folding_survives_its_file(tmp_path: Path) -> None:
    made = fastest(graph("residual"), PARTS["zu3eg"]).design
    path = tmp_path / "folding.json"
    path.write_text(to_json(made))
    assert from_json(graph("residual"), path).design.folds == made.folds


def edited(tmp_path: Path, change: object) -> Path:
    document = json.loads(to_json(fastest(graph("mlp"), PARTS["zu3eg"]).design))
    change(document)  # type: ignore[operator]  # a function that edits it
    path = tmp_path / "folding.json"
    path.write_text(json.dumps(document))
    return path


def test_what_does_not_divide_is_refused_with_the_nearest(tmp_path: Path) -> None:
    def change(document: dict[str, dict[str, dict[str, object]]]) -> None:
        next(iter(document["layers"].values()))["pe"] = 15

    with pytest.raises(LoweringError, match="pe 16") as raised:
        from_json(graph("mlp"), edited(tmp_path, change))
    assert "one of 1, 2, 4, 8, 16, 32, 64" in str(raised.value)
    assert raised.value.node == "requantize"


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document["layers"].pop(next(iter(document["layers"]))),
        lambda document: document["layers"].update(other={"pe": 1, "simd": 1}),
        lambda document: document.update(format=99),
        lambda document: document.pop("layers"),
        lambda document: next(iter(document["layers"].values())).update(simd=0),
        lambda document: next(iter(document["layers"].values())).update(simd="four"),
        lambda document: next(iter(document["layers"].values())).update(simdd=4),
        lambda document: next(iter(document["layers"].values())).update(streamed="yes"),
    ],
)
def test_a_damaged_folding_is_refused(change: object, tmp_path: Path) -> None:
    with pytest.raises(LoweringError):
        from_json(graph("mlp"), edited(tmp_path, change))


def test_no_file_is_no_folding(tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match="is no folding"):
        from_json(graph("mlp"), tmp_path / "none.json")


def test_unknown_parts_name_the_nearest() -> None:
    with pytest.raises(LoweringError, match="zu3eg"):
        find_part("zu3")
    assert find_part("xc7z020clg400-1") is PARTS["zynq7020"]


@pytest.mark.parametrize("density", [1.0, 0.5, 0.2, 0.1, 0.0])
def test_a_static_schedule_has_every_block_and_skips_zeros(density: float) -> None:
    random = np.random.default_rng(0)
    pe, simd = 4, 8
    blocks = random.random((32, 16)) < density
    weight = np.repeat(blocks, simd, axis=1) * random.integers(1, 9, (32, 16 * simd))
    steps = sparse_steps(weight, pe, simd)
    seen = np.zeros_like(blocks)
    for fold, plan in enumerate(steps):
        for step in plan:
            for lane, block in enumerate(step):
                if block >= 0:
                    assert not seen[fold * pe + lane, block]
                    seen[fold * pe + lane, block] = True
    assert np.array_equal(seen, blocks)
    layer = next(layer for layer in graph("wide").layers if isinstance(layer, MatrixVector))
    assert replace(layer, weight=weight).sparse_steps(pe, simd) == sum(map(len, steps))


def test_zeros_save_cycles_and_memory() -> None:
    dense = graph("wide")
    (first, *rest) = (layer for layer in dense.layers if isinstance(layer, MatrixVector))
    weight = first.weight.copy()
    weight.reshape(256, 64, 8)[:, np.arange(64) % 10 != 0] = 0
    sparse = Graph((replace(first, weight=weight), *rest), dense.inputs, dense.outputs)
    folds = {first.name: Fold(4, 8), rest[0].name: Fold(4, 8)}
    before, after = (design(given, folds).processes[0] for given in (dense, sparse))
    assert turns(after) * 4 < turns(before)
