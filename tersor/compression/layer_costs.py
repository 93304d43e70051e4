"""The table of what layers cost on a target, from programs that were measured there."""

from __future__ import annotations

from tersor.ir.program import Program
from tersor.passes.pruning.analysis import dimensions
from tersor.passes.pruning.axes import Remaining
from tersor.passes.pruning.costs import Costs
from tersor.passes.pruning.layer_table import LayerTable

from .measurement import Measured


def layer_table(program: Program, whole: Measured, cut: tuple[Program, Measured] | None = None) -> LayerTable:
    """What layers of a program cost, from the costs of the program quantized.

    cut: the same with fewer channels, quantized, and what it costs: what a layer takes however many it has, such as the
    launch of its kernel, is told from what each channel adds by it. Measured layers are made to add up to the whole.
    """
    assert whole.latency is not None
    layers = _layers(whole)
    if cut is not None and not whole.at_once:
        layers = _growing(program, layers, cut[0], _layers(cut[1]))
    rest = whole.latency - sum(layers.values())
    return LayerTable.of(program, layers, whole.unit, max(0.0, rest), whole.at_once)


def _layers(measured: Measured) -> dict[str, float]:
    """By node, at most the whole in all: a profile takes time itself."""
    assert measured.latency is not None
    sum_of_all = sum(measured.layers.values())
    fit = 1.0 if measured.at_once or not sum_of_all else min(1.0, measured.latency / sum_of_all)
    return {name: cost * fit for name, cost in measured.layers.items()}


def _growing(program: Program, whole: dict[str, float], cut: Program, less: dict[str, float]) -> dict[str, float]:
    """The part of each layer's cost that falls with its work: by the line through both points, at most all of it."""
    before, after = (Costs(found, dimensions(found)) for found in (program, cut))
    nodes = {node.name: node for node in cut.graph.nodes}
    growing = {}
    for node in program.graph.nodes:
        if node.name not in whole or not before.works(node):
            continue
        twin = nodes.get(node.name)
        known = twin is not None and after.works(twin)
        work = before.work(node, Remaining({}))
        left = after.work(twin, Remaining({})) if known and twin is not None else work
        saved = whole[node.name] - less.get(node.name, whole[node.name])
        share = saved / whole[node.name] / (1 - left / work) if left < work and whole[node.name] > 0 else 1.0
        growing[node.name] = whole[node.name] * min(1.0, max(0.0, share))
    return growing
