"""Where fake-quantize goes: which operators read and give values on a grid, and which values share one.

The aim is speed on the target and no needless loss, so a grid is put where an integer kernel asks for one:

- a COMPUTE operator reads its activation on a grid; one whose kernel requantizes (convolution) gives one too, after a
  clamp that is fused into it;
- ELEMENTWISE, LOOKUP and JOIN operators are quantized where they are between integer kernels, as a residual add between
  convolutions does, and stay float elsewhere, unless everything is asked for;
- MOVE operators carry the grid of their input, JOIN operators share one among their inputs.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import fx

from tersor.ir.origin import Origin
from tersor.ir.program import Program

from .roles import CARRIERS, FAST_LOOKUPS, PRODUCTS, WEIGHTS, Role, constant_factor, is_slow, operands, role_of


class Coverage(enum.Enum):
    """How much is quantized.

    FASTEST: what an integer kernel speeds up, and what stands between such kernels. EVERYTHING: every operator that
    has an integer form, for targets without floating point.
    """

    FASTEST = "fastest"
    EVERYTHING = "everything"


@dataclass(frozen=True)
class Place:
    """A value that is put on a grid. `users` are the nodes that read it from the grid; None means all of them."""

    node: fx.Node
    group: str
    users: tuple[fx.Node, ...] | None = None


@dataclass
class Placement:
    """The plan: quantized nodes, and the values on grids with the group of those that share one."""

    quantized: dict[fx.Node, Role] = field(default_factory=dict)
    places: list[Place] = field(default_factory=list)


def place(
    program: Program,
    coverage: Coverage,
    operators: Sequence[str] = (),
    skip: Sequence[str] = (),
    only: Sequence[str] = (),
) -> Placement:
    """Plan the grids of a float program. Changes nothing.

    operators: names such as `conv2d`, which alone may be quantized; empty means all.
    skip: patterns of nodes that are left float (see `matches`).
    only: patterns of which layers with weights have to match one; empty means all.
    """
    return _Placer(program, coverage, operators, skip, only).plan()


class _Placer:
    def __init__(
        self,
        program: Program,
        coverage: Coverage,
        operators: Sequence[str],
        skip: Sequence[str],
        only: Sequence[str],
    ) -> None:
        self.program = program
        self.nodes = list(program.graph.nodes)
        self.roles = {node: role_of(program, node) for node in self.nodes}
        allowed = {node for node in self.nodes if _chosen(node, operators, skip)}
        self.compute = {n for n in self.nodes if self.roles[n] is Role.COMPUTE and n in allowed and _named(n, only)}
        self.everything = coverage is Coverage.EVERYTHING
        self.fused = {n for n in allowed if self.everything and self._scales_accumulators(n, allowed)}
        between = {n for n in self.nodes if n in allowed and self._can_stand_between(n)} - self.fused
        self.absorbed = {n for n in between if self.everything and self._continues(n, between)}
        between -= self.absorbed
        self.quantized = self.compute | (between if self.everything else self._between(between))
        self.parent: dict[fx.Node, fx.Node] = {}
        self.users: dict[fx.Node, list[fx.Node] | None] = {}

    def plan(self) -> Placement:
        for node in self.nodes:
            if node in self.quantized and self._gives_grid(node):
                self.users[self._tail(node)] = None
        for node in self.nodes:
            if node in self.quantized:
                self._demand(node)
        places = [Place(n, self._group(n).name, None if u is None else tuple(u)) for n, u in self.users.items()]
        return Placement({n: self.roles[n] for n in self.nodes if n in self.quantized}, places)

    def _can_stand_between(self, node: fx.Node) -> bool:
        role = self.roles[node]
        if role is Role.LOOKUP:
            return self.everything or node.target in FAST_LOOKUPS
        return role in (Role.ELEMENTWISE, Role.JOIN) and (self.everything or not is_slow(self.program, node))

    def _between(self, candidates: set[fx.Node]) -> set[fx.Node]:
        """Those that read from an integer kernel that gives a grid, and are read by an integer kernel."""
        reads: set[fx.Node] = set()
        for node in self.nodes:
            sources = [self._source(operand) for operand in operands(self.program, node)]
            bound = [s in reads or (s in self.compute and self._gives_grid(s)) for s in map(self._unclamped, sources)]
            if node in candidates and any(bound):
                reads.add(node)
        wanted: set[fx.Node] = set()
        for node in reversed(self.nodes):
            if node in reads and any(u in self.compute or u in wanted for u in self._readers(node)):
                wanted.add(node)
        return wanted

    def _continues(self, node: fx.Node, between: set[fx.Node]) -> bool:
        """Whether a table goes on from this look-up to the next, so that the value between needs no grid."""
        (user, *more) = [*node.users] or [node]
        return (
            not more
            and user is not node
            and {self.roles[node], self.roles.get(user)} == {Role.LOOKUP}
            and user in between
        )

    def _gives_grid(self, node: fx.Node) -> bool:
        """Whether the kernel requantizes its output. JOIN does not: its output is where its inputs are."""
        if self.roles[node] is Role.COMPUTE:
            return self.everything or WEIGHTS[node.target].needs_output_grid
        return self.roles[node] in (Role.ELEMENTWISE, Role.LOOKUP)

    def _tail(self, node: fx.Node) -> fx.Node:
        """The last of the clamps, and of the constant factors where everything is integer, that a kernel fuses."""
        while len(node.users) == 1 and self._is_fused(user := next(iter(node.users))):
            node = user
        return node

    def _is_fused(self, node: fx.Node) -> bool:
        return self.roles.get(node) is Role.CLAMP or node in self.fused

    def _scales_accumulators(self, node: fx.Node, allowed: set[fx.Node]) -> bool:
        """Whether a node multiplies by a constant that can go into the multiplier of a kernel's requantization."""
        source = node.args[0] if constant_factor(node) is not None else None
        if not isinstance(source, fx.Node) or len(source.users) > 1 or source not in allowed:
            return False
        return source in self.compute or (source.target in PRODUCTS and self.roles[source] is Role.ELEMENTWISE)

    def _source(self, node: fx.Node) -> fx.Node:
        """The node whose values a chain of moves carries."""
        while self.roles[node] in CARRIERS and isinstance(node.args[0], fx.Node):
            node = node.args[0]
        return node

    def _unclamped(self, node: fx.Node) -> fx.Node:
        while self.roles[node] in (Role.CLAMP, *CARRIERS) and isinstance(node.args[0], fx.Node):
            node = node.args[0]
        return node

    def _readers(self, node: fx.Node) -> list[fx.Node]:
        """The users of a value, seen through moves and clamps."""
        found: list[fx.Node] = []
        for user in node.users:
            transparent = self.roles.get(user) in (Role.CLAMP, *CARRIERS)
            found += self._readers(user) if transparent else [user]
        return found

    def _demand(self, node: fx.Node) -> None:
        """Put what a quantized node reads on grids; the inputs and the output of a JOIN on one."""
        sources = [self._provide(*self._start(operand, node)) for operand in operands(self.program, node)]
        if self.roles[node] is Role.JOIN:
            for source in sources:
                self._unite(sources[0], source)
            self._unite(sources[0], node)

    def _start(self, value: fx.Node, user: fx.Node) -> tuple[fx.Node, fx.Node]:
        """Where a table that ends at `user` starts: a value, and what reads it."""
        while value in self.absorbed:
            user, (value,) = value, operands(self.program, value)
        return value, user

    def _provide(self, value: fx.Node, user: fx.Node) -> fx.Node:
        """The place whose grid `value` is on, made where there is none yet."""
        source = self._source(value)
        if source in self.quantized and self.roles[source] is Role.JOIN:
            return source
        if source in self.users and self.users[source] is None:
            return source
        while self.roles[value] in CARRIERS and isinstance(value.args[0], fx.Node):
            if len(value.args[0].users) > 1 and not self.everything:
                break
            user, value = value, value.args[0]
        readers = self.users.setdefault(value, [])
        if readers is not None and user not in readers:
            readers.append(user)
        return value

    def _group(self, node: fx.Node) -> fx.Node:
        while node in self.parent:
            node = self.parent[node]
        return node

    def _unite(self, left: fx.Node, right: fx.Node) -> None:
        left, right = self._group(left), self._group(right)
        if left is not right:
            self.parent[right] = left


def operator_of(node: fx.Node) -> str:
    """The operator's name without namespace and overload: `conv2d`."""
    return str(getattr(node.target, "_opname", node.target))


def matches(node: fx.Node, pattern: str) -> bool:
    """Whether a pattern matches a node.

    `%name` is the node of that name. Anything else is a regular expression that has to match the whole of the node's
    name, or of the path of the module that it came from.
    """
    if pattern.startswith("%"):
        return node.name == pattern[1:]
    origin = Origin.of(node)
    names = (node.name, origin.module if origin is not None else "")
    return any(re.fullmatch(pattern, name) for name in names if name)


def _named(node: fx.Node, only: Sequence[str]) -> bool:
    return not only or any(matches(node, pattern) for pattern in only)


def _chosen(node: fx.Node, operators: Sequence[str], skip: Sequence[str]) -> bool:
    if operators and operator_of(node) not in operators:
        return False
    return not any(matches(node, pattern) for pattern in skip)
