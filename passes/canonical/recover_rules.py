"""Activations and normalizations written out, and the operator that each of them is.

A row is a formula and what stands for it. Scales and shifts after a norm join it one at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from tersor.ir.shapes import KEY

from ..arguments import argument, set_argument
from .rules import Context, Rule
from .terms import PRODUCTS, SUMS, Either, Match, Op, Over, Product, Sum, Term, Var, match, roots

aten = torch.ops.aten

X = Var("x")
_HALF_ROOT = math.sqrt(0.5)
_GELU_SLOPE = math.sqrt(2 / math.pi)


def _square(term: Term) -> Term:
    return Either(*_powers(term), Product(1.0, term, term))


def _powers(term: Term) -> tuple[Term, ...]:
    return Op(aten.pow.Tensor_Scalar, term, exponent=2), Op(aten.square.default, term)


def _scaled_square(number: float) -> Term:
    """A number times the square of x, which may be multiplied out."""
    return Either(*(Product(number, power) for power in _powers(X)), Product(number, X, X))


def _scaled_cube(number: float) -> Term:
    cube = Op(aten.pow.Tensor_Scalar, X, exponent=3)
    squares = (Product(number, X, power) for power in _powers(X))
    return Either(Product(number, cube), *squares, Product(number, X, X, X))


def _mean(term: Term, name: str = "mean") -> Term:
    return Op(aten.mean.dim, term, name=name, keepdim=True, dtype=None)


def _clamp(term: Term, low: float, high: float) -> Term:
    clamps: tuple[Term, ...] = (
        Op(aten.clamp.default, term, min=low, max=high),
        Op(aten.hardtanh.default, term, min_val=low, max_val=high),
    )
    return Either(*clamps, Op(aten.relu6.default, term)) if (low, high) == (0, 6) else Either(*clamps)


def _inverse_root(term: Term) -> tuple[Term, ...]:
    """What a product by 1 / sqrt(term) has as a factor."""
    power = Op(aten.pow.Tensor_Scalar, term, exponent=-0.5)
    return Op(aten.rsqrt.default, term), Over(Op(aten.sqrt.default, term)), power


_GELU_ANGLE = Either(
    Product(_GELU_SLOPE, Sum(0.0, X, _scaled_cube(0.044715))),
    Product(_GELU_SLOPE, X, Sum(1.0, _scaled_square(0.044715))),
)
_TO_SIX = _clamp(Sum(3.0, X), 0, 6)
_CENTERED = Op(aten.sub.Tensor, X, _mean(X, "center"), alpha=1)
_VARIANCE = Either(
    _mean(_square(_CENTERED)),
    Op(aten.var.correction, X, name="mean", correction=0, keepdim=True),
    Op(aten.var.dim, X, name="mean", unbiased=False, keepdim=True),
)
_SPREAD = Either(*_inverse_root(Sum("eps", _VARIANCE)))
_POWER = Either(*_inverse_root(Sum("eps", _mean(_square(X)))))

Build = Callable[[Context, fx.Node, Match], "fx.Node | None"]


def _of_x(target: Any, **options: Any) -> Build:
    return lambda context, node, found: context.instead(node, target, found.nodes["x"], **options)


def _norm(target: Any, *without: None) -> Build:
    """A norm of x without weights; `without` stands for them in its arguments."""

    def build(context: Context, node: fx.Node, found: Match) -> fx.Node | None:
        sizes, x = _normalized(context, found), found.nodes["x"]
        return context.instead(node, target, x, sizes, *without, found.numbers["eps"]) if sizes else None

    return build


def _normalized(context: Context, found: Match) -> list[int]:
    """The sizes over which a norm goes: those of the last axes, none of which changes; empty for any other axes."""
    shape = context.shape(found.nodes["x"])
    axes = [_axes(found.nodes[name], len(shape)) for name in ("mean", "center") if name in found.nodes]
    last = list(range(len(shape) - len(axes[0]), len(shape)))
    sizes = [size for size in shape[last[0] if last else 0 :] if isinstance(size, int)]
    fits = all(each == last for each in axes) and len(sizes) == len(last) and found.numbers["eps"] >= 0
    return sizes if fits else []


def _axes(mean: fx.Node, rank: int) -> list[int]:
    return sorted(axis % rank for axis in argument(mean, "dim") or ())


@dataclass(frozen=True)
class Formula:
    """A formula and what builds the operator that computes it, as a rule."""

    pattern: Term
    build: Build

    def __call__(self, context: Context, node: fx.Node) -> fx.Node | None:
        found = match(context, self.pattern, node)
        return None if found is None else self.build(context, node, found)


# Layer norm is the RMS norm of what is centered, so it comes first.
_FORMULAS: tuple[tuple[str, Term, Build], ...] = (
    ("rsqrt", Op(aten.reciprocal.default, Op(aten.sqrt.default, X)), _of_x(aten.rsqrt.default)),
    ("silu", Product(1.0, X, Op(aten.sigmoid.default, X)), _of_x(aten.silu.default)),
    ("mish", Product(1.0, X, Op(aten.tanh.default, Op(aten.softplus.default, X, beta=1))), _of_x(aten.mish.default)),
    ("hardsigmoid", Product(1 / 6, _TO_SIX), _of_x(aten.hardsigmoid.default)),
    ("hardsigmoid", _clamp(Sum(0.5, Product(1 / 6, X)), 0, 1), _of_x(aten.hardsigmoid.default)),
    ("hardswish", Product(1 / 6, X, _TO_SIX), _of_x(aten.hardswish.default)),
    ("hardswish", Product(1.0, X, Op(aten.hardsigmoid.default, X)), _of_x(aten.hardswish.default)),
    ("gelu", Product(0.5, X, Sum(1.0, Op(aten.erf.default, Product(_HALF_ROOT, X)))), _of_x(aten.gelu.default)),
    (
        "gelu",
        Product(0.5, X, Sum(1.0, Op(aten.tanh.default, _GELU_ANGLE))),
        _of_x(aten.gelu.default, approximate="tanh"),
    ),
    ("layer_norm", Product(1.0, _CENTERED, _SPREAD), _norm(aten.layer_norm.default, None, None)),
    ("rms_norm", Product(1.0, X, _POWER), _norm(aten.rms_norm.default, None)),
)


def scale_into_norm(context: Context, node: fx.Node) -> fx.Node | None:
    """A norm without weights, times a tensor of the sizes that it goes over."""
    for norm, scale in _operands(node):
        if _takes(context, norm, scale, node) and _plain(norm):
            return _with_argument(context, node, norm, "weight", scale)
    return None


def shift_into_norm(context: Context, node: fx.Node) -> fx.Node | None:
    """A layer norm without bias, plus a tensor of the sizes that it goes over."""
    for norm, shift in _operands(node) if argument(node, "alpha") == 1 else ():
        fits = norm.target is aten.layer_norm.default and _takes(context, norm, shift, node)
        if fits and argument(norm, "bias") is None:
            return _with_argument(context, node, norm, "bias", shift)
    return None


def bias_into_linear(context: Context, node: fx.Node) -> fx.Node | None:
    """A linear without bias, plus a parameter with a value for each output."""
    for linear, bias in _operands(node) if argument(node, "alpha") == 1 else ():
        if linear.target is not aten.linear.default or argument(linear, "bias") is not None or bias.op != "get_attr":
            continue
        if len(linear.users) == 1 and context.shape(bias) == context.shape(linear)[-1:]:
            return _with_argument(context, node, linear, "bias", bias)
    return None


def product_as_linear(context: Context, node: fx.Node) -> fx.Node | None:
    """A product with a matrix of parameters: a linear, whose weight has a row for each output."""
    bias, x, matrix = (None, *node.args) if node.target is aten.matmul.default else node.args
    if not isinstance(x, fx.Node) or not isinstance(matrix, fx.Node) or x.op == "get_attr":
        return None
    if context.shape(x)[-1:] != context.shape(matrix)[:1] or len(context.shape(x)) < 2 or not _adds_once(node):
        return None
    if bias is not None and context.shape(bias) != context.shape(matrix)[1:]:  # type: ignore[arg-type]  # a node
        return None
    weight = _rows_of(context, node, matrix)
    return None if weight is None else context.instead(node, aten.linear.default, x, weight, bias)


def _adds_once(node: fx.Node) -> bool:
    return node.target is aten.matmul.default or (argument(node, "alpha") == 1 and argument(node, "beta") == 1)


def _rows_of(context: Context, node: fx.Node, matrix: fx.Node) -> fx.Node | None:
    """A matrix of parameters, turned; itself before it was turned, where it was."""
    source: Any = matrix.args[0] if matrix.target is aten.permute.default else None
    if source is not None:
        return source if source.op == "get_attr" and len(context.shape(source)) == 2 else None
    name, program = str(matrix.target), context.program
    if matrix.op != "get_attr" or len(context.shape(matrix)) != 2 or name in program.sparsity:
        return None
    tensor = program.tensor(name)
    if not isinstance(tensor, nn.Parameter) or context.reads(name) > 1 or len(matrix.users) > 1:
        return None
    turned = nn.Parameter(tensor.detach().t().contiguous(), tensor.requires_grad)
    with program.graph.inserting_before(node):
        return program.attribute(program.add_tensor(f"{name}_transposed", turned))


def _operands(node: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
    """Both operands in either order; none where one is a number."""
    left, right = node.args[:2]
    return [(left, right), (right, left)] if isinstance(left, fx.Node) and isinstance(right, fx.Node) else []


def _takes(context: Context, norm: fx.Node, tensor: fx.Node, user: fx.Node) -> bool:
    """Whether nobody else uses the norm, and the tensor has a value of the norm's dtype for each it goes over."""
    if norm.target not in _NORMS or len(norm.users) > 1 or tensor is norm:
        return False
    sizes = tuple(argument(norm, "normalized_shape"))
    return context.shape(tensor) == sizes and tensor.meta[KEY].dtype is norm.meta[KEY].dtype


def _plain(norm: fx.Node) -> bool:
    bias = argument(norm, "bias") if norm.target is aten.layer_norm.default else None
    return argument(norm, "weight") is None and bias is None


def _with_argument(context: Context, node: fx.Node, inner: fx.Node, name: str, value: fx.Node) -> fx.Node | None:
    """The inner call again in the place of `node`, with one more argument."""
    target: Any = inner.target
    new = context.instead(node, target, *inner.args, **inner.kwargs)
    if new is not None:
        set_argument(new, name, value)
    return new


_NORMS = frozenset({aten.layer_norm.default, aten.rms_norm.default})

TABLE: tuple[tuple[str, Rule, tuple[Any, ...]], ...] = (
    *(
        (f"{name} recovered", Formula(pattern, build), tuple(sorted(roots(pattern), key=str)))
        for name, pattern, build in _FORMULAS
    ),
    ("scales joined to norms", scale_into_norm, PRODUCTS[:1]),
    ("shifts joined to norms", shift_into_norm, SUMS[:1]),
    ("products written as linear", product_as_linear, (aten.matmul.default, aten.addmm.default)),
    ("biases joined to linears", bias_into_linear, SUMS[:1]),
)
