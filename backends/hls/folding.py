"""How parallel each layer is: chosen for a number of cycles within a part, or given by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tersor.ir.errors import LoweringError

from .design import Design, Fold, choices, design, follows, lanes_in, window_fold
from .fifos import interval
from .graph import Geometry, Graph, Layer, MatrixVector, Window, weight_bits
from .parts import USABLE, Part
from .resources import Resources, estimate, total
from .schedule import behind_window, last_pixel, unit_turns, window_turns

_FORMAT = 1
_KEYS = {"pe", "simd", "streamed", "fabric", "pe_may_be", "simd_may_be"}
"""What a layer has in the file; the last two are there to be read."""


@dataclass(frozen=True)
class Choice:
    """A design and what it takes, by process."""

    design: Design
    cycles: int
    resources: Mapping[str, Resources]

    @property
    def total(self) -> Resources:
        """All of it."""
        return total(self.resources)

    def excess(self, part: Part) -> dict[str, float]:
        """How many times what is usable of the part it takes, where that is more than there is."""
        found = {kind: amount / (getattr(part, kind) * USABLE[kind]) for kind, amount in self.total.items()}
        return {kind: ratio for kind, ratio in found.items() if ratio > 1}


def fastest(graph: Graph, part: Part) -> Choice:
    """The fewest cycles a frame that the part has room for. Raises LoweringError where even the least is too much."""
    least = fold_for(graph, None, part)
    if least.excess(part):
        raise _too_big(graph, least, part)
    targets = sorted(_targets(graph, least.cycles))
    low, high, best = 0, len(targets) - 1, least
    while low <= high:
        middle = (low + high) // 2
        found = fold_for(graph, targets[middle], part)
        if found.cycles <= targets[middle] and not found.excess(part):
            best, high = (found if found.cycles < best.cycles else best), middle - 1
        else:
            low = middle + 1
    return best


def for_cycles(graph: Graph, cycles: int, part: Part) -> Choice:
    """The smallest design of at most so many cycles a frame. Raises LoweringError with the nearest that fits."""
    found = fold_for(graph, cycles, part)
    if found.cycles <= cycles and not found.excess(part):
        return found
    best = fastest(graph, part)
    if best.cycles <= cycles:  # what is quicker may take less: divisors and zeros do not fall evenly
        return best
    if found.cycles > cycles:
        what = f"no folding takes {cycles} cycles a frame: the most parallel takes {found.cycles}"
    else:
        what = f"{cycles} cycles a frame take more than {part.name} has"
    raise LoweringError(
        what,
        expected=_amounts(part),
        found=_taken(found.total),
        hint=f"cycles={best.cycles}, the fewest that fit here; a larger part; or prune, then lower again",
    )


def fold_for(graph: Graph, cycles: int | None, part: Part) -> Choice:
    """The least parallel folding of each layer that is quick enough, the least of all for None.

    Weights go outside the chip, and products into look-up tables, as far as the part makes it necessary.
    """
    windows = {layer.y.name: layer for layer in graph.layers if isinstance(layer, Window)}
    folds = {}
    for layer in graph.layers:
        if not follows(layer):
            folds[layer.name] = _least(layer, _geometry(layer, windows), cycles)
    return _fitted(graph, folds, part)


def _fitted(graph: Graph, folds: dict[str, Fold], part: Part) -> Choice:
    found = _measure(graph, folds)
    if "dsp" in found.excess(part):
        found = _into_fabric(graph, folds, part, found)
    if "bram" in found.excess(part):
        found = _streamed(graph, dict(found.design.folds), part, found)
    return found


def _measure(graph: Graph, folds: Mapping[str, Fold]) -> Choice:
    made = design(graph, folds)
    return Choice(made, interval(made), estimate(made, {}))


def _into_fabric(graph: Graph, folds: dict[str, Fold], part: Part, found: Choice) -> Choice:
    """Products into look-up tables, those of the layers with the fewest multipliers first."""
    order = sorted((taken.dsp, name) for name, taken in found.resources.items() if taken.dsp and name in folds)
    excess = found.total.dsp - int(part.dsp * USABLE["dsp"])
    for dsp, name in order:
        if excess <= 0:
            break
        folds[name] = replace(folds[name], fabric=True)
        excess -= dsp
    return _measure(graph, folds)


def _streamed(graph: Graph, folds: dict[str, Fold], part: Part, found: Choice) -> Choice:
    """Weights out of the chip, of the layers that read them least often in a frame first."""
    room = part.memory * found.cycles
    units = [layer for layer in graph.layers if isinstance(layer, MatrixVector)]
    for unit in sorted(units, key=lambda unit: (unit.pixels, -unit.weight.size)):
        traffic = unit.pixels * unit.weight.size * weight_bits(unit.weight)
        if traffic > room or not found.resources[unit.name].bram:
            continue
        room -= traffic
        folds[unit.name] = replace(folds[unit.name], streamed=True)
        found = _measure(graph, folds)
        if "bram" not in found.excess(part):
            break
    return found


# -- one layer -------------------------------------------------------------------------------------------------------


def _pairs(layer: Layer) -> list[tuple[int, int]]:
    """The folds of a layer, those with the fewest multipliers first; of equal ones those with more inputs.

    Each output has a multiplier of its own where sums are requantized.
    """
    found = choices(layer)
    every = [(pe, simd) for pe in found.pe for simd in found.simd]
    own = getattr(layer, "requantizer", None) is not None
    return sorted(every, key=lambda pair: (pair[0] * (pair[1] + own), -pair[1]))


def _least(layer: Layer, geometry: Geometry | None, cycles: int | None) -> Fold:
    pairs = _pairs(layer)
    if cycles is None:
        return Fold(*pairs[0])
    for pair in pairs:
        if _turns(layer, geometry, *pair, wanted=cycles) <= cycles:
            return Fold(*pair)
    return Fold(*min(pairs, key=lambda pair: (_turns(layer, geometry, *pair), pair[0] * pair[1])))


def _turns(layer: Layer, geometry: Geometry | None, pe: int, simd: int, wanted: int = 0) -> int:
    """Cycles of a layer with its window generator, without building the design.

    A static schedule is looked at only where more than `wanted` are taken without.
    """
    fold = Fold(pe, simd)
    if isinstance(layer, MatrixVector):
        own, after = _unit(layer, fold, wanted)
    else:
        sent = [stream.count // pe for stream in layer.writes]
        own, after = max([*sent, *(stream.count // lanes_in(layer, fold) for stream in layer.reads)]), 0
    if geometry is None:
        return own
    taken = window_fold(geometry, layer, fold)
    folds = layer.x.channels // taken.pe
    turns = window_turns(geometry, folds, taken.simd > 1)
    return max(own, turns, 0 if taken.simd > 1 else behind_window(geometry, folds, own, after))


def _unit(layer: MatrixVector, fold: Fold, wanted: int) -> tuple[int, int]:
    """The cycles of a matrix-vector unit, and those after its last read, with a static schedule where it has one."""
    dense = unit_turns(layer, fold, None)
    steps = layer.sparse_steps(fold.pe, fold.simd) if dense > wanted else None
    if steps is not None and unit_turns(layer, fold, steps) >= dense:
        steps = None
    return unit_turns(layer, fold, steps), last_pixel(layer, fold, steps)


def _geometry(layer: Layer, windows: Mapping[str, Window]) -> Geometry | None:
    """That of the window generator in front of a layer."""
    source = windows.get(layer.reads[0].name) if layer.reads else None
    return None if source is None else source.geometry


def _targets(graph: Graph, most: int) -> set[int]:
    """Numbers of cycles worth trying: those that some layer takes with some fold."""
    windows = {layer.y.name: layer for layer in graph.layers if isinstance(layer, Window)}
    found = {most}
    for layer in graph.layers:
        if isinstance(layer, MatrixVector) or _geometry(layer, windows):
            geometry = _geometry(layer, windows)
            found |= {_turns(layer, geometry, *pair, wanted=most) for pair in _pairs(layer)}
    return {target for target in found if target <= most}


# -- what does not fit -----------------------------------------------------------------------------------------------


def _too_big(graph: Graph, least: Choice, part: Part) -> LoweringError:
    kind, ratio = max(least.excess(part).items(), key=lambda pair: pair[1])
    heavy = sorted(least.resources, key=lambda name: -getattr(least.resources[name], kind))[:3]
    layers = {layer.name: layer for layer in graph.layers}
    listed = ", ".join(
        f"%{layers[name].node if name in layers else name} ({getattr(least.resources[name], kind)})" for name in heavy
    )
    keep = math.sqrt(1 / ratio)  # weights go with the product of two layers' channels
    return LoweringError(
        f"the model does not fit {part.name}, even at its smallest folding: {ratio:.1f} times its {kind}",
        expected=_amounts(part),
        found=f"{_taken(least.total)}; the most {kind}: {listed}",
        hint=f"prune to about {keep:.0%} of the channels, fewer bits, or a larger part",
    )


def _amounts(part: Part) -> str:
    return ", ".join(f"{kind} {int(getattr(part, kind) * share)}" for kind, share in USABLE.items())


def _taken(resources: Resources) -> str:
    return ", ".join(f"{kind} {amount}" for kind, amount in resources.items())


# -- by hand ---------------------------------------------------------------------------------------------------------


def to_json(made: Design) -> str:
    """`folding.json`: each layer's fold, and what its numbers may be."""
    layers = {}
    for layer in made.graph.layers:
        if not follows(layer):
            legal = choices(layer)
            layers[layer.name] = {**asdict(made.folds[layer.name]), "pe_may_be": legal.pe, "simd_may_be": legal.simd}
    return json.dumps({"format": _FORMAT, "layers": layers}, indent=1)


def from_json(graph: Graph, path: Path) -> Choice:
    """The design of an edited `folding.json`.

    Raises LoweringError where it is no such file, or a number does not divide, with the nearest that does.
    """
    try:
        document: Any = json.loads(path.read_text())
        rows = {str(name): dict(row) for name, row in document["layers"].items()}
        newer = document["format"] > _FORMAT
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoweringError(f"{path} is no folding: {error}", expected="a file as lowering writes it") from error
    if newer:
        raise LoweringError(f"{path} was written by a newer version", expected=_FORMAT, found=document["format"])
    return _measure(graph, dict(_checked(graph, path, rows)))


def _checked(graph: Graph, path: Path, rows: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Fold]]:
    layers = {layer.name: layer for layer in graph.layers if not follows(layer)}
    if missing := sorted(set(layers) - set(rows)):
        raise LoweringError(f"{path} lacks a layer", node=layers[missing[0]].node, expected=missing[0])
    if unknown := sorted(set(rows) - set(layers)):
        raise LoweringError(f"{path} names a layer that the model does not have", found=unknown[0])
    for name, layer in layers.items():
        legal = choices(layer)
        pe, simd = (_legal(layer, kind, getattr(legal, kind), rows[name].get(kind, 1)) for kind in ("pe", "simd"))
        flags = {kind: _flag(layer, kind, rows[name].get(kind, False)) for kind in ("streamed", "fabric")}
        if other := sorted(set(rows[name]) - _KEYS):
            raise LoweringError(f"{name} has no {other[0]!r}", node=layer.node, expected=", ".join(sorted(_KEYS)))
        if flags["streamed"] and not isinstance(layer, MatrixVector):
            raise LoweringError("only matrix-vector units stream weights", node=layer.node, found=name)
        yield name, Fold(pe, simd, **flags)


def _flag(layer: Layer, kind: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise LoweringError(f"{layer.name}: {kind} is a flag", node=layer.node, expected="true or false", found=value)
    return value


def _legal(layer: Layer, kind: str, legal: tuple[int, ...], value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value in legal:
        return value
    near = min(legal, key=lambda choice: abs(choice - value)) if isinstance(value, int) else legal[0]
    raise LoweringError(
        f"{layer.name}: {kind} does not divide what it folds",
        node=layer.node,
        expected=f"one of {', '.join(map(str, legal))}",
        found=value,
        hint=f"{kind} {near}",
    )
