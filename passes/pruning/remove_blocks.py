"""Cut out whole residual blocks."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from tersor.ir.errors import CalibrationError, PassError
from tersor.ir.macs import RULES as MULTIPLIES
from tersor.ir.origin import Origin
from tersor.ir.program import Program
from tersor.ir.shapes import KEY
from tersor.ir.stage import Stage

from ..base import Pass, PassResult, Promise
from ..compare import node_values
from ..progress import track
from ..training.batches import split
from .analysis import dimensions
from .axes import Remaining
from .costs import Costs
from .gathering import require_data
from .groups import groups
from .targets import Target

aten = torch.ops.aten
_NEAR = 0.02


@dataclass(frozen=True)
class ResidualBlock:
    """What stands between a value and the addition that it skips to.

    sum: the addition. skip: the operand that goes around. branch: the operand that is computed from it.
    """

    sum: fx.Node
    skip: fx.Node
    branch: fx.Node

    @property
    def name(self) -> str:
        """The module in which the addition stands, and the addition."""
        origin = Origin.of(self.sum)
        return f"{origin.module}.{self.sum.name}" if origin is not None and origin.module else self.sum.name


def residual_blocks(program: Program) -> tuple[ResidualBlock, ...]:
    """Every addition of a value and what products compute from that value, in graph order, both of one shape."""
    order = {node: place for place, node in enumerate(program.graph.nodes)}
    found = []
    for node in program.graph.find_nodes(op="call_function", target=aten.add.Tensor):
        left, right = node.args[:2]
        nodes = all(isinstance(value, fx.Node) and value.op != "get_attr" for value in (left, right))
        if not nodes or node.kwargs or left.meta[KEY].shape != right.meta[KEY].shape:
            continue
        skip, branch = (left, right) if order[left] < order[right] else (right, left)
        if _computed_from(branch, skip, order):
            found.append(ResidualBlock(node, skip, branch))
    return tuple(found)


def _computed_from(value: fx.Node, source: fx.Node, order: dict[fx.Node, int]) -> bool:
    stack, seen, reached = [value], {value}, False
    while stack:
        for before in stack.pop().all_input_nodes:
            reached |= before is source
            if before not in seen and order[before] > order[source]:
                seen.add(before)
                stack.append(before)
    return reached and any(node.target in MULTIPLIES for node in seen)


@dataclass(frozen=True)
class BlockCriterion(ABC):
    """From a residual block to what it is worth. The lowest go first."""

    def gather(self, program: Program, blocks: Sequence[ResidualBlock]) -> Any:
        """Run what data the criterion needs through the program, once."""
        return None

    @abstractmethod
    def score(self, block: ResidualBlock, gathered: Any) -> float:
        """The worth of a block."""


@dataclass(frozen=True)
class BlockInfluence(BlockCriterion):
    """How far a block turns what passes through it: 1 - the mean cosine of its input and output (arXiv:2403.03853).

    batches: what the program is called with. Channels are the last dimension, of images the second.
    """

    batches: Iterable[Any] | None = None

    def gather(self, program: Program, blocks: Sequence[ResidualBlock]) -> dict[fx.Node, float]:
        """The mean cosine, by addition."""
        wanted = {block.sum: block.skip for block in blocks}
        kept: dict[fx.Node, Tensor] = {}
        sums: dict[fx.Node, list[float]] = {node: [] for node in wanted}

        def visit(node: fx.Node, value: Any) -> None:
            if node in wanted:
                dim = 1 if value.dim() == 4 else -1
                cosine = torch.nn.functional.cosine_similarity(kept[wanted[node]].double(), value.double(), dim=dim)
                sums[node].append(cosine.mean().item())
            if node in wanted.values():
                kept[node] = value

        for batch in track(require_data(self, self.batches), "block influence"):
            node_values(program, split(program, batch).inputs(program), visit)
        if not all(sums.values()):
            raise CalibrationError("the data is empty", expected="at least one batch", found="none")
        return {node: sum(values) / len(values) for node, values in sums.items()}

    def score(self, block: ResidualBlock, gathered: Any) -> float:
        """1 - its cosine."""
        return 1 - float(gathered[block.sum])


@dataclass(frozen=True)
class RemoveBlocks(Pass):
    """Let a residual addition be its skip: what was computed beside it goes, attention or MLP or convolutions.

        %branch = linear(gelu(linear(%x, @up)), @down)
        %sum = add(%x, %branch)                             ->    %x
        %next = f(%sum)                                           %next = f(%x)

    The outputs are those of the program before with these branches silenced.

    count: how many blocks go. target: or what is to be left, as `Macs(0.8)`: blocks go until that is passed or, where
        that is nearer, almost.
    criterion: which go first. blocks: regular expressions of block names (module and addition) to choose among; empty
        means all. keep: of those that stay.

    Raises PassError where there are not as many blocks, or the target is out of reach (with the smallest that is not);
    CalibrationError where the criterion has no data.
    """

    takes: ClassVar[frozenset[Stage]] = frozenset({Stage.FLOAT, Stage.FAKE_QUANT})
    promise: ClassVar[Promise] = Promise.APPROXIMATE

    count: int | None = None
    target: Target | None = None
    criterion: BlockCriterion = field(default_factory=BlockInfluence)
    blocks: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.count is None) == (self.target is None):
            raise PassError(
                "either a count or a target", hint="RemoveBlocks(count=2) or RemoveBlocks(target=Macs(0.8))"
            )
        if self.count is not None and self.count < 1:
            raise PassError("count is a number of blocks", expected="at least 1", found=self.count)

    def run(self, program: Program) -> PassResult:
        """Score the blocks and remove from the lowest up."""
        chosen = [block for block in residual_blocks(program) if self._is_chosen(block.name)]
        if len(chosen) < (self.count or 1):
            raise PassError(f"there are {len(chosen)} blocks to choose from", expected=f"at least {self.count or 1}")
        gathered = self.criterion.gather(program, chosen)
        chosen.sort(key=lambda block: self.criterion.score(block, gathered))
        going = chosen[: self.count] if self.target is None else self._enough(program, chosen, self.target)
        for block in going:
            _remove(program, block.sum)
        program.graph.eliminate_dead_code()
        names = ", ".join(block.name for block in going)
        return PassResult(program, bool(going), (f"{len(going)} of {len(chosen)} blocks went: {names}",))

    def _is_chosen(self, name: str) -> bool:
        wanted = not self.blocks or any(re.search(expression, name) for expression in self.blocks)
        return wanted and not any(re.search(expression, name) for expression in self.keep)

    def _enough(self, program: Program, chosen: list[ResidualBlock], target: Target) -> list[ResidualBlock]:
        """As many from the front as come nearest to the target."""
        trial = program.copy()
        nodes = {node.name: node for node in trial.graph.nodes}
        costs = [_cost(trial, target)]
        for block in chosen:
            _remove(trial, nodes[block.sum.name])
            trial.graph.eliminate_dead_code()
            trial.remove_unused_tensors()
            costs.append(_cost(trial, target))
            if costs[-1] <= target.share * costs[0]:
                break
        wanted = target.share * costs[0]
        if costs[-1] > wanted * (1 + _NEAR):
            smallest = f"at least {costs[-1] / costs[0]:.4f} of {target.what}, with every block gone"
            raise PassError(
                f"{target} cannot be reached by blocks alone", expected=smallest, hint="PruneChannels as well"
            )
        best = min(range(len(costs)), key=lambda place: abs(costs[place] - wanted))
        return chosen[:best]


def _cost(program: Program, target: Target) -> float:
    found = dimensions(program)
    return target.cost(Costs(program, found), groups(program, found), Remaining({}))


def _remove(program: Program, total: fx.Node) -> None:
    """Put the skip in the addition's place, as it is now: an addition before it may be gone already."""
    left, right = (value for value in total.args[:2] if isinstance(value, fx.Node))
    order = {node: place for place, node in enumerate(program.graph.nodes)}
    program.replace(total, left if order[left] < order[right] else right)
