"""What zeros save: blocks of zero weights at one folding, and pruned channels at one number of cycles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from tersor.backends.hls.design import Design, Fold, choices, design, follows
from tersor.backends.hls.fifos import Fifos, size_fifos
from tersor.backends.hls.folding import fastest, for_cycles
from tersor.backends.hls.graph import Graph, Layer, MatrixVector
from tersor.backends.hls.parts import PARTS
from tersor.backends.hls.resources import estimate, total
from tersor.passes.pruning.prune_channels import PruneChannels
from tersor.passes.pruning.targets import Macs

from ..results import Row
from .models import DS_CNN, Model, graph_of, mlp

SHARES = (0.0, 0.5, 0.8, 0.9)
_BLOCK = 4
_WIDE = Model(lambda: mlp(16, 256, 128, 5), (1, 16))
_PART = PARTS["zu9eg"]


def rows() -> Iterator[Row]:
    """Blocks of 1 x 4: rolled at one folding, and unrolled whole. Then channels."""
    for name, model in (("wide jet tagger", _WIDE), ("DS-CNN", DS_CNN)):
        graph = graph_of(model.quantized())
        folds = {layer.name: _fold(layer) for layer in graph.layers if not follows(layer)}
        yield from _compared(f"{name}, {{:.0%}} of blocks zero", [design(_zeroed(graph, s), folds) for s in SHARES])
    graph = graph_of(Model(lambda: mlp(16, 64, 32, 32, 5), (1, 16)).quantized())
    whole = {layer.name: Fold(choices(layer).pe[-1], choices(layer).simd[-1]) for layer in graph.layers}
    yield from _compared(
        "jet tagger unrolled, {:.0%} of blocks zero", [design(_zeroed(graph, s), whole) for s in SHARES]
    )
    yield from _pruned()


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


def _pruned() -> Iterator[Row]:
    """The DS-CNN with channels gone: look-up tables at the cycles of the whole model, then the fewest cycles."""
    first: tuple[int, int] | None = None
    for share in SHARES:
        passes = [PruneChannels(Macs(1 - share), multiple=4)] if share else []
        graph = graph_of(DS_CNN.quantized(*passes))
        quickest = fastest(graph, _PART)
        first = first or (quickest.cycles * 4, quickest.cycles)
        small = for_cycles(graph, first[0], _PART)
        taken = _taken(small.design, size_fifos(small.design))
        note = f"at {first[0]} cycles: {taken}"
        what = f"DS-CNN, {share:.0%} of its operations pruned: fewest cycles"
        yield Row(what, quickest.cycles, "cycles", first[1], "whole", first[1] / quickest.cycles, note=note)


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
