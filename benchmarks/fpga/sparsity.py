"""What zeros save: blocks of zero weights at one folding, and pruned channels at one number of cycles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from tersor.backends.hls.design import Design, Fold, choices, design, follows
from tersor.backends.hls.fifos import Fifos, size_fifos
from tersor.backends.hls.folding import fastest, for_cycles
from tersor.backends.hls.graph import Graph, Layer, MatrixVector
from tersor.backends.hls.parts import PARTS, Part
from tersor.backends.hls.resources import estimate, total
from tersor.passes.pruning.prune_channels import PruneChannels
from tersor.passes.pruning.targets import Macs

from ..results import Row
from .models import DS_CNN, JET_TAGGER, Model, graph_of, mlp, snapped

SHARES = (0.0, 0.5, 0.8, 0.9)
_BLOCK = 4
_WIDE = Model(lambda: mlp(16, 256, 128, 5), (1, 16))
_PART = PARTS["zu9eg"]
_SMALL_PARTS = ("zynq7020", "zu3eg")


def rows() -> Iterator[Row]:
    """Blocks of 1 x 4: rolled at one folding, folded for a part, and unrolled whole. Then channels."""
    wide, graph = graph_of(_WIDE.quantized()), graph_of(snapped(DS_CNN.quantized()))
    folds = {layer.name: _fold(layer) for layer in wide.layers if not follows(layer)}
    yield from _compared("wide jet tagger, {:.0%} of blocks zero", [design(_zeroed(wide, s), folds) for s in SHARES])
    for part in _SMALL_PARTS:
        what = f"DS-CNN on {part}, {{:.0%}} of blocks zero: fewest cycles"
        yield from _fewest(what, [_zeroed(graph, share) for share in SHARES], PARTS[part])
    small = graph_of(JET_TAGGER.quantized())
    whole = {layer.name: Fold(choices(layer).pe[-1], choices(layer).simd[-1]) for layer in small.layers}
    yield from _compared(
        "jet tagger unrolled, {:.0%} of blocks zero", [design(_zeroed(small, s), whole) for s in SHARES]
    )
    pruned = [[PruneChannels(Macs(1 - share), multiple=4)] if share else [] for share in SHARES]
    graphs = [graph_of(snapped(DS_CNN.quantized(*passes))) for passes in pruned]
    yield from _fewest(f"DS-CNN on {_PART.name}, {{:.0%}} of its operations pruned: fewest cycles", graphs, _PART)


def _fold(layer: object) -> Fold:
    if isinstance(layer, MatrixVector):
        return Fold(1, _BLOCK if _BLOCK in choices(layer).simd else 1)
    return Fold(1, 1)


def _compared(what: str, designs: list[Design]) -> Iterator[Row]:
    least = 0
    for share, made in zip(SHARES, designs, strict=True):
        found = size_fifos(made)
        cycles = found.timing.interval
        least = least or cycles
        yield Row(what.format(share), cycles, "cycles", least, "dense", least / cycles, note=_taken(made, found))


def _fewest(what: str, graphs: list[Graph], part: Part) -> Iterator[Row]:
    """The fewest cycles that a part has room for, and what the cycles of the dense model take of it."""
    dense = fastest(graphs[0], part).cycles
    for share, graph in zip(SHARES, graphs, strict=True):
        cycles = size_fifos(fastest(graph, part).design).timing.interval
        same = for_cycles(graph, dense, part).design
        note = f"at {dense} cycles: {_taken(same, size_fifos(same))}"
        yield Row(what.format(share), cycles, "cycles", dense, "dense", dense / cycles, note=note)


def _taken(made: Design, found: Fifos) -> str:
    resources = total(estimate(made, found.depths))
    return "estimated " + ", ".join(f"{kind} {amount}" for kind, amount in resources.items())


def _zeroed(graph: Graph, share: float) -> Graph:
    """The same with that share of the blocks of every matrix zero, as many in each row."""
    random = np.random.default_rng(0)
    layers: list[Layer] = []
    for layer in graph.layers:
        if isinstance(layer, MatrixVector) and layer.weight.shape[1] % _BLOCK == 0:
            rows, columns = layer.weight.shape
            blocks = columns // _BLOCK
            kept = random.permuted(np.tile(np.arange(blocks) >= round(share * blocks), (rows, 1)), axis=1)
            layers.append(replace(layer, weight=layer.weight * np.repeat(kept, _BLOCK, axis=1)))
        else:
            layers.append(layer)
    return Graph(tuple(layers), graph.inputs, graph.outputs)
