"""Where the channels of an activation can be divided by a factor and its readers' weights multiplied by it.

    y = W x   is   y = (W diag(s)) (x / s)

The division is free where something before it takes it in: the gain of a norm, the rows of a linear or a convolution
(through relu and pooling, which are positively homogeneous, and through one factor of a product), or the values of an
attention. Methods that move difficulty between activations and weights (SmoothQuant, AWQ, equalization) all stand on
this. A tensor that anything else reads is never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from tersor.ir.operators import along
from tersor.ir.program import Program
from tersor.ir.shapes import KEY

from .roles import WEIGHTS, Role, role_of

aten = torch.ops.aten


@dataclass(frozen=True)
class Site:
    """A value, its channel dimension, and what reads it.

    readers: linears or convolutions with constant weights, all of which read `value` on their channels.
    scaled: the tensors that take the division in, each with its channel axis; None where nothing can.
    repeats: channels are `heads x size`, and each group of `heads` shares one factor per channel of `size`, as the
        heads
        of grouped-query attention share their values: (groups, heads, size). None where every channel is free.
    """

    value: fx.Node
    dim: int
    readers: tuple[fx.Node, ...]
    scaled: tuple[tuple[str, int], ...] | None
    repeats: tuple[int, int, int] | None = None

    def tied(self, factors: Tensor) -> Tensor:
        """Factors float32[channels] made equal where they have to be: the largest of each that share one."""
        if self.repeats is None:
            return factors
        return factors.reshape(self.repeats).amax(1, keepdim=True).expand(self.repeats).reshape(-1)

    def source_factors(self, factors: Tensor) -> Tensor:
        """What the scaled tensors are divided by: one factor for each of their channels."""
        return factors if self.repeats is None else factors.reshape(self.repeats)[:, 0].reshape(-1)


def linear_sites(program: Program) -> list[Site]:
    """Every value that linears with constant weights of their own read on its last dimension, in graph order."""
    finder = _Finder(program)
    values: dict[fx.Node, list[fx.Node]] = {}
    for node in program.graph.find_nodes(op="call_function", target=aten.linear.default):
        if finder.own_weight(node) and isinstance(node.args[0], fx.Node):
            values.setdefault(node.args[0], []).append(node)
    order = {node: place for place, node in enumerate(program.graph.nodes)}
    return [
        finder.site(value, -1, readers) for value, readers in sorted(values.items(), key=lambda item: order[item[0]])
    ]


def chain_sites(program: Program) -> list[Site]:
    """Every value between two operators with a weight of which nothing else reads it, where moving factors is exact."""
    finder = _Finder(program)
    found = []
    for node in program.graph.nodes:
        if node.target in WEIGHTS and finder.own_weight(node) and isinstance(node.args[0], fx.Node):
            value = node.args[0]
            dim = -1 if node.target is aten.linear.default else 1
            site = finder.site(value, dim, [node])
            if site.scaled and any(program.tensor(name).dim() > 1 for name, _ in site.scaled):
                found.append(site)
    return found


def migrate(program: Program, site: Site, factors: Tensor) -> None:
    """Divide the value's channels by `factors`, float32[channels] > 0, and multiply the readers' weights by them.

    Where nothing takes the division in, it is inserted before the readers. The program's function stays the same.
    """
    factors = site.tied(factors.detach().float())
    source = site.source_factors(factors)
    changed = {}
    for name, axis in site.scaled or ():
        tensor = program.tensor(name).detach()
        changed[name] = (tensor / along(source, axis, tensor.dim())).to(tensor.dtype)
    for reader in site.readers:
        name = str(reader.args[1].target)  # type: ignore[union-attr]  # own_weight holds
        changed[name] = multiplied(reader, program.tensor(name).detach(), factors)
    program.set_tensors(changed)
    if site.scaled is None:
        _insert(program, site, factors)


def multiplied(reader: fx.Node, weight: Tensor, factors: Tensor) -> Tensor:
    """The weight of a linear or convolution with its input channels multiplied."""
    groups = _groups(reader)
    if groups == 1:
        return (weight * along(factors, 1, weight.dim())).to(weight.dtype)
    per_group = factors.reshape(groups, -1).repeat_interleave(weight.shape[0] // groups, 0)
    return (weight * per_group.reshape(*per_group.shape, *[1] * (weight.dim() - 2))).to(weight.dtype)


def _insert(program: Program, site: Site, factors: Tensor) -> None:
    name = program.add_tensor(f"{site.value.name}_smoothing", (1 / factors))
    first = min(site.readers, key=list(program.graph.nodes).index)
    with program.graph.inserting_before(first):
        constant = program.attribute(name)
        divided = program.call(
            aten.mul.Tensor, (site.value, constant), like=site.value, name=f"{site.value.name}_smoothed"
        )
    for reader in site.readers:
        reader.update_arg(0, divided)


def _groups(reader: fx.Node) -> int:
    """The groups of a convolution; 1 of a linear."""
    return int(reader.args[6]) if len(reader.args) > 6 else 1  # type: ignore[arg-type]  # an int


_KEEPS_CHANNELS_AT_1 = frozenset(
    {
        aten.max_pool1d.default,
        aten.max_pool2d.default,
        aten.avg_pool1d.default,
        aten.avg_pool2d.default,
        aten.adaptive_avg_pool2d.default,
        aten.upsample_nearest2d.vec,
        aten.upsample_nearest2d.default,
    }
)
_HOMOGENEOUS = frozenset({aten.relu.default, aten.leaky_relu.default, aten.alias.default, aten.clone.default})


@dataclass(frozen=True)
class _Taken:
    """Tensors that take a division in, and how channels are tied."""

    tensors: tuple[tuple[str, int], ...]
    repeats: tuple[int, int, int] | None = None


class _Finder:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.uses: dict[int, int] = {}
        for node in program.graph.find_nodes(op="get_attr"):
            key = id(program.tensor(str(node.target)))
            self.uses[key] = self.uses.get(key, 0) + len(node.users)

    def site(self, value: fx.Node, dim: int, readers: Sequence[fx.Node]) -> Site:
        """What is known of a value that `readers` read."""
        taken = self._taken(value, dim, frozenset(readers))
        if taken is None:
            return Site(value, dim, tuple(readers), None)
        return Site(value, dim, tuple(readers), taken.tensors, taken.repeats)

    def own_weight(self, node: fx.Node) -> bool:
        """Whether the operator's weight is a constant that nothing else reads."""
        return role_of(self.program, node) is Role.COMPUTE and self._own(node.args[WEIGHTS[node.target].weight])

    def _own(self, argument: object) -> bool:
        tensor = self.program.constant(argument)
        return tensor is not None and self.uses[id(tensor)] == 1

    def _taken(self, node: fx.Node, dim: int, users: frozenset[fx.Node]) -> _Taken | None:
        """The tensors that take the division of `node`'s channels in, where only `users` read it."""
        if node.op != "call_function" or not users.issuperset(node.users):
            return None
        rule = _RULES.get(node.target)
        if rule is not None:
            return rule(self, node, dim)
        if node.target in _HOMOGENEOUS or (dim == 1 and node.target in _KEEPS_CHANNELS_AT_1):
            return self.before(node, node.args[0], dim)
        return None

    def before(self, node: fx.Node, source: object, dim: int) -> _Taken | None:
        """The same of what `node` reads."""
        return self._taken(source, dim, frozenset({node})) if isinstance(source, fx.Node) else None

    def vectors(self, arguments: Iterable[object], axis: int = 0) -> _Taken | None:
        """The tensors given, those of them that there are, if nothing else reads any of them."""
        present = [argument for argument in arguments if isinstance(argument, fx.Node)]
        if not present or not all(self._own(argument) for argument in present):
            return None
        return _Taken(tuple((str(argument.target), axis) for argument in present))


def _norm(finder: _Finder, node: fx.Node, dim: int) -> _Taken | None:
    """The gain and the bias of a norm over the last dimension."""
    shape = node.args[1]
    gain = node.args[2] if len(node.args) > 2 else None
    if dim != -1 or len(shape) != 1 or not isinstance(gain, fx.Node):  # type: ignore[arg-type]  # a list of sizes
        return None
    bias = node.args[3:4] if node.target is aten.layer_norm.default else ()
    return finder.vectors((gain, *bias))


def _batch_norm(finder: _Finder, node: fx.Node, dim: int) -> _Taken | None:
    gain = node.args[1]
    return finder.vectors(node.args[1:3]) if dim == 1 and isinstance(gain, fx.Node) else None


def _weighted(finder: _Finder, node: fx.Node, dim: int) -> _Taken | None:
    """The output channels of a linear or convolution."""
    if (node.target is aten.linear.default) != (dim == -1) or not finder.own_weight(node):
        return None
    return finder.vectors((node.args[1], *node.args[2:3]))


def _product(finder: _Finder, node: fx.Node, dim: int) -> _Taken | None:
    """One factor of a product: a constant along the channels, else a value that can be divided itself."""
    shape = node.meta[KEY].shape
    for mine, other in (node.args[:2], node.args[1::-1]):
        if not isinstance(mine, fx.Node):
            continue
        tensor = finder.program.constant(mine)
        if tensor is None and isinstance(other, fx.Node | int | float) and _same_size(mine, node, dim):
            found = finder.before(node, mine, dim)
            if found is not None:
                return found
        if tensor is not None and dim == -1 and tensor.dim() and tensor.shape[-1] == shape[-1] == tensor.numel():
            return finder.vectors((mine,), tensor.dim() - 1)
    return None


def _same_size(source: fx.Node, node: fx.Node, dim: int) -> bool:
    return bool(source.meta[KEY].shape[dim] == node.meta[KEY].shape[dim])


def _quotient(finder: _Finder, node: fx.Node, dim: int) -> _Taken | None:
    return finder.before(node, node.args[0], dim) if not isinstance(node.args[1], fx.Node) else None


def _mean(finder: _Finder, node: fx.Node, dim: int) -> _Taken | None:
    """A mean over the last two dimensions of four, after which channels are at 1 still, or last."""
    source = node.args[0].meta[KEY]  # type: ignore[union-attr]  # a node
    dims = sorted(d % source.dim() for d in node.args[1] or ())  # type: ignore[union-attr]  # a list of ints
    after = node.meta[KEY].dim()
    if source.dim() != 4 or dims != [2, 3] or dim % after != 1:
        return None
    return finder.before(node, node.args[0], 1)


def _selection(finder: _Finder, node: fx.Node, dim: int) -> _Taken | None:
    """A part of another dimension than the channels."""
    source = node.args[0].meta[KEY].dim()  # type: ignore[union-attr]  # a node
    along_ = (node.args[1] if len(node.args) > 1 else 0) % source
    channel = source - 1 if dim == -1 else dim
    return None if along_ == channel or dim != -1 else finder.before(node, node.args[0], dim)


def _reshape(finder: _Finder, node: fx.Node, dim: int) -> _Taken | None:
    """Other dimensions regrouped, or the heads of an attention put side by side."""
    if dim != -1:
        return None
    if _same_size(node.args[0], node, -1):  # type: ignore[arg-type]  # a node
        return finder.before(node, node.args[0], -1)
    return _heads(finder, node)


def _heads(finder: _Finder, node: fx.Node) -> _Taken | None:
    """reshape <- [batch, length, heads, size] <- attention <- values <- [batch, length, heads, size] <- linear."""
    joined = node.args[0]
    attention = _swapped(joined)
    if attention is None or attention.target is not aten.scaled_dot_product_attention.default:
        return None
    heads, size = joined.meta[KEY].shape[-2:]  # type: ignore[union-attr]  # a node
    values = attention.args[2]
    if not isinstance(values, fx.Node) or len(attention.users) != 1 or len(joined.users) != 1:  # type: ignore[union-attr]
        return None
    values = _unrepeated(values)
    split = _swapped(values)
    if split is None or split.target is not aten.reshape.default or len(split.users) != 1 or len(values.users) != 1:
        return None
    own = values.meta[KEY].shape[1]
    if values.meta[KEY].dim() != 4 or values.meta[KEY].shape[-1] != size or heads % own:
        return None
    source = split.args[0]
    if not isinstance(source, fx.Node) or source.meta[KEY].shape[-1] != own * size:
        return None
    found = finder.before(split, source, -1)
    return found if found is None or own == heads else replace(found, repeats=(int(own), int(heads // own), int(size)))


def _swapped(node: object) -> fx.Node | None:
    """What a permutation of dimensions 1 and 2 of four reads."""
    if not isinstance(node, fx.Node) or node.op != "call_function" or not isinstance(node.args[0], fx.Node):
        return None
    if node.target is aten.permute.default and list(node.args[1]) == [0, 2, 1, 3]:  # type: ignore[arg-type]
        return node.args[0]
    if node.target is aten.transpose.int and sorted(node.args[1:3]) == [1, 2]:  # type: ignore[type-var]
        return node.args[0]
    return None


def _unrepeated(values: fx.Node) -> fx.Node:
    """Values before each head was repeated for the queries that share it: reshape <- expand <- unsqueeze at 2."""
    chain = [values]
    for target in (aten.reshape.default, aten.expand.default, aten.unsqueeze.default):
        node = chain[-1]
        if node.target is not target or len(node.users) != 1 or not isinstance(node.args[0], fx.Node):
            return values
        chain.append(node.args[0])
    return chain[-1] if chain[2].args[1] == 2 else values


_RULES: dict[object, Callable[[_Finder, fx.Node, int], _Taken | None]] = {
    aten.layer_norm.default: _norm,
    aten.rms_norm.default: _norm,
    aten.batch_norm.default: _batch_norm,
    aten.linear.default: _weighted,
    aten.conv1d.default: _weighted,
    aten.conv2d.default: _weighted,
    aten.conv3d.default: _weighted,
    aten.mul.Tensor: _product,
    aten.mul.Scalar: _quotient,
    aten.div.Tensor: _quotient,
    aten.div.Scalar: _quotient,
    aten.mean.dim: _mean,
    aten.select.int: _selection,
    aten.slice.Tensor: _selection,
    aten.reshape.default: _reshape,
}
"""How a division of a node's channels is passed on to what it reads, or taken in."""
