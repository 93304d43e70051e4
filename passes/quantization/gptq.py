"""Round the weights of a layer together, so that their errors cancel in its output."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from tersor.ir.errors import CalibrationError, PassError
from tersor.ir.program import Program
from tersor.ir.stage import Stage

from ..base import Pass, PassResult, Promise
from ..compare import node_values
from ..progress import track
from .calibration_data import first_batches, required
from .finite import refuse_unfinite
from .samples import Gram
from .weight_grid import QuantizedLayer, WeightGrid, input_rows, quantized_layers

_COLUMNS = 128


@dataclass(frozen=True)
class GPTQ(Pass):
    """Move each rounding error onto the weights that are not rounded yet, weighted by how inputs go together.

    Frantar et al. 2023 (arXiv:2210.17323). For a layer y = W x, the error of rounding is (Wq - W) H (Wq - W)^T with
    H = E[x x^T]. Columns are rounded in order of falling H[i, i]; after each, the rest of the row takes up the error
    as far as H lets it, through the Cholesky factor of the inverse of H. The grids stay as they are, of a row or of
    a block. A layer keeps plain rounding where that has the smaller error on H.

    batches: as for `Calibrate`; the first `count` are read.
    damping: what is added to the diagonal of H, as a share of its mean.
    memory: bytes that the matrices H of layers handled together may take. Layers are handled in graph order, and later
        ones see what earlier ones give after rounding; the data is run once for each lot.
    bits: only weights of at most so many.

    Convolutions are taken as products with patches; those in groups are left as they are. Zeros that the program
    promises stay, and their neighbours take up what they would have (Frantar and Alistarh 2023, arXiv:2301.00774).

    Raises CalibrationError where data is missing, empty or not finite.
    """

    takes: ClassVar[frozenset[Stage]] = frozenset({Stage.FAKE_QUANT})
    promise: ClassVar[Promise] = Promise.APPROXIMATE

    batches: Iterable[Any] | None = None
    count: int = 16
    damping: float = 0.01
    memory: int = 1 << 28
    bits: int = 8

    def __post_init__(self) -> None:
        if self.damping <= 0 or self.count < 1 or self.memory < 1:
            raise PassError("damping, count and memory are positive", found=(self.damping, self.count, self.memory))

    def run(self, program: Program) -> PassResult:
        """Round every layer whose weight has a grid."""
        layers = [layer for layer in quantized_layers(program) if self._wanted(layer)]
        if not layers:
            return PassResult(program, False, ("no weights to round",))
        before = after = 0.0
        batches = None if self.batches is None else first_batches(self.batches, self.count)
        rounded = 0
        for lot in _lots(program, layers, self.memory):
            for layer, gram in self._grams(program, lot, batches):
                grid = WeightGrid.of(program, layer.quantizer)
                plain, best, values = better_rounding(grid, gram, self.damping)
                before, after = before + plain, after + best
                if values is not None:
                    shape = program.tensor(layer.weight).shape
                    program.set_tensor(layer.weight, values.reshape(shape).to(program.tensor(layer.weight).dtype))
                    rounded += 1
        gain = f"output error of rounding down to {after / before:.0%}" if before else "no error to take out"
        return PassResult(program, bool(rounded), (f"{rounded} of {len(layers)} weights, {gain}",))

    def _wanted(self, layer: QuantizedLayer) -> bool:
        low, high = (int(bound) for bound in layer.quantizer.args[-2:])  # type: ignore[arg-type]  # by its schema
        return (high - low).bit_length() <= self.bits and groups_of(layer.node) == 1

    def _grams(
        self, program: Program, lot: Sequence[QuantizedLayer], batches: list[Any] | None
    ) -> Iterator[tuple[QuantizedLayer, Tensor]]:
        """The mean of x x^T of what each layer reads in the program as it is now."""
        by_source: dict[tuple[fx.Node, int], list[QuantizedLayer]] = {}
        for layer in lot:
            by_source.setdefault(_shared(layer), []).append(layer)
        grams = {key: Gram() for key in by_source}
        wanted: dict[fx.Node, list[tuple[tuple[fx.Node, int], fx.Node]]] = {}
        for key, members in by_source.items():
            wanted.setdefault(key[0], []).append((key, members[0].node))

        def visit(node: fx.Node, value: Any) -> None:
            for key, reader in wanted.get(node, ()):
                rows = input_rows(reader, value)
                assert rows is not None
                grams[key].add(rows)

        for inputs in track(required(program, batches), "weigh", None if batches is None else len(batches)):
            node_values(program, inputs, visit)
            for gram in grams.values():
                if gram.total is not None and not bool(torch.isfinite(gram.total.diagonal()).all()):
                    raise refuse_unfinite(program, inputs, CalibrationError("calibration"))
        for key, members in by_source.items():
            mean = grams[key].mean
            if mean is not None:
                yield from ((layer, mean) for layer in members)


def groups_of(layer: fx.Node) -> int:
    """The groups of a convolution; 1 of a linear."""
    return int(layer.args[6]) if len(layer.args) > 6 else 1  # type: ignore[arg-type]  # an int


def _shared(layer: QuantizedLayer) -> tuple[fx.Node, int]:
    """Linears of one input share its matrix; a convolution's depends on how it reads."""
    source = layer.node.args[0]
    assert isinstance(source, fx.Node)
    return source, 0 if layer.node.target is torch.ops.aten.linear.default else id(layer.node)


def _lots(program: Program, layers: Sequence[QuantizedLayer], memory: int) -> Iterator[list[QuantizedLayer]]:
    """Layers in order, as many together as their matrices fit in memory; readers of one value stay together."""
    lot: list[QuantizedLayer] = []
    seen: set[tuple[fx.Node, int]] = set()
    used = 0
    for layer in layers:
        columns = program.tensor(layer.weight).flatten(1).shape[1]
        size = 0 if _shared(layer) in seen else 8 * columns * columns
        if lot and used + size > memory:
            yield lot
            lot, seen, used, size = [], set(), 0, 8 * columns * columns
        lot.append(layer)
        seen.add(_shared(layer))
        used += size
    if lot:
        yield lot


def better_rounding(grid: WeightGrid, gram: Tensor, damping: float) -> tuple[float, float, Tensor | None]:
    """The error of plain rounding, the least error found, and the values that have it; None for plain rounding's."""
    plain = output_error(grid.rounded(grid.weight) - grid.weight, gram)
    values = round_together(grid, gram, damping)
    found = output_error(values - grid.weight, gram)
    return (plain, found, values) if found < plain else (plain, plain, None)


def output_error(error: Tensor, gram: Tensor) -> float:
    """The mean squared error of all outputs for a weight error float[rows, columns]: trace(E H E^T)."""
    wide = error.double()
    return float(((wide @ gram) * wide).sum())


def round_together(grid: WeightGrid, gram: Tensor, damping: float) -> Tensor:
    """Weights on their grids, float32[rows, columns], rounded column by column with the errors passed on.

    Columns go in lots, so that most of the passing on is one matrix product a lot.
    """
    order = gram.diagonal().argsort(descending=True)
    factor = _inverse_factor(gram[order][:, order], damping).float()
    ordered = grid.by_column(order)
    left = ordered.weight.clone()
    result = torch.empty_like(left)
    columns = left.shape[1]
    for start in range(0, columns, _COLUMNS):
        end = min(start + _COLUMNS, columns)
        errors = left.new_zeros(left.shape[0], end - start)
        for column in range(start, end):
            result[:, column] = ordered.rounded(left[:, column], column)
            error = (left[:, column] - result[:, column]) / factor[column, column]
            left[:, column:end] -= error.unsqueeze(1) * factor[column, column:end]
            errors[:, column - start] = error
        left[:, end:] -= errors @ factor[start:end, end:]
    return result[:, order.argsort()]


def _inverse_factor(gram: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor of the inverse of H; damped until it exists. An input that is always 0 counts as 1."""
    diagonal = gram.diagonal()
    gram = gram + torch.diag((diagonal == 0).to(gram.dtype))
    share = damping
    while True:
        damped = gram + torch.diag((share * gram.diagonal().mean()).expand(gram.shape[0]))
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not int(failed):
                return torch.as_tensor(upper)
        share *= 10
