"""Shapes and dtypes of every node, found by running the graph on tensors that hold no data.

Each node's `meta["val"]` is a fake tensor (or a symbolic integer). Dynamic dimensions are symbols made here, one a
name, so nothing depends on the tracer that the graph came from, and a program read from a file is propagated the same.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import sympy
import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from .errors import VerificationError
from .operators import KEEP_SHAPE
from .signature import Range, TensorSpec

if TYPE_CHECKING:
    from .program import Program

KEY = "val"
Shape = tuple[int | str, ...]

aten = torch.ops.aten

SYMBOLIC_OPERATORS = frozenset(
    {operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod, operator.neg, operator.truediv}
    | {operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge, operator.getitem, operator.pow}
    | {torch.sym_max, torch.sym_min, torch.sym_not, torch.sym_int, torch.sym_float}
)
"""Python functions that a graph may call besides operators: arithmetic on sizes, and picking from a tuple."""


class ShapeContext:
    """The symbols of the dynamic dimensions, and the mode in which fake tensors are made. Copies of a program share it.

    A symbol stands for sizes from 2 up, as torch reasons about it; that size 1 works too is checked by running.
    """

    def __init__(self, dims: Mapping[str, Range]) -> None:
        self.env = ShapeEnv(allow_scalar_outputs=True, allow_dynamic_output_shape_ops=True)
        self.mode = FakeTensorMode(shape_env=self.env, allow_non_fake_inputs=True)
        self._names: dict[sympy.Symbol, str] = {}
        self._sizes: dict[str, torch.SymInt] = {}
        for index, (name, span) in enumerate(dims.items()):
            hint = max(2, span.low) + 5 + 2 * index
            hint = hint if span.high is None else min(hint, span.high)
            self._sizes[name] = self._symbol(name, hint, span)

    def _symbol(self, name: str, hint: int, span: Range) -> torch.SymInt:
        # Half of the time that `import tersor` takes would be dynamo's.
        from torch._dynamo.source import ConstantSource

        source = ConstantSource(f"dim_{name}")
        symbol = self.env.create_symbol(hint, source, dynamic_dim=DimDynamic.DYNAMIC)
        size = self.env.create_symintnode(symbol, hint=hint, source=source)
        if not isinstance(size, torch.SymInt) or not isinstance(symbol, sympy.Symbol):
            raise VerificationError(
                f"dimension {name!r} has one size only", expected="a range of sizes", found=str(span)
            )
        high = sympy.oo if span.high is None else span.high
        self.env.constrain_symbol_range(symbol, compiler_min=max(2, span.low), compiler_max=high)
        self._names[symbol] = name
        return size

    def input(self, spec: TensorSpec) -> Tensor:
        """A fake tensor of that spec."""
        sizes = [dim if isinstance(dim, int) else self._sizes[dim] for dim in spec.shape]
        with self.mode:
            return torch.empty(sizes, dtype=spec.dtype)

    def fake(self, tensor: Tensor) -> Tensor:
        """The fake tensor that stands for a parameter or buffer, on the CPU: shapes do not depend on devices."""
        if tensor.device.type != "cpu":
            with self.mode:
                return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
        return self.mode.from_tensor(tensor, static_shapes=True)

    def expression(self, size: Any) -> int | str:
        """A size as a number, or as text in the names of the dynamic dimensions."""
        if isinstance(size, int):
            return size
        expr = self.env.simplify(size.node.expr)
        if expr.is_Integer:
            return int(expr)
        return str(expr.xreplace({symbol: sympy.Symbol(name) for symbol, name in self._names.items()}))

    def names(self, size: torch.SymInt) -> frozenset[str]:
        """The dynamic dimensions that a size depends on."""
        return frozenset(self._names[symbol] for symbol in size.node.expr.free_symbols if symbol in self._names)

    def evaluate(self, size: Any, sizes: Mapping[str, int]) -> int:
        """A size as a number where the dynamic dimensions are `sizes`, and 1 where it depends on data."""
        if isinstance(size, int):
            return size
        expr = self.env.simplify(size.node.expr)
        values = {symbol: sympy.Integer(sizes.get(self._names.get(symbol, ""), 1)) for symbol in expr.free_symbols}
        return int(expr.xreplace(values))


def shape_of(program: Program, value: fx.Node | Tensor) -> Shape:
    """The sizes of a node's tensor; a dynamic one as text, such as `batch` or `2*batch`."""
    tensor = value.meta[KEY] if isinstance(value, fx.Node) else value
    return tuple(program.shapes.expression(size) for size in tensor.shape)


def describe(program: Program, value: Any) -> str:
    """A value's type as printed: `float32[batch, 64]`, `(float32[2], int64[2])`, `batch`."""
    if isinstance(value, Tensor):
        sizes = ", ".join(map(str, shape_of(program, value)))
        return f"{str(value.dtype).removeprefix('torch.')}[{sizes}]"
    if isinstance(value, list | tuple):
        return f"({', '.join(describe(program, item) for item in value)})"
    if isinstance(value, torch.SymInt):
        return str(program.shapes.expression(value))
    return str(value) if value is None or isinstance(value, bool | int | float) else type(value).__name__


def infer(program: Program, node: fx.Node) -> Any:
    """The value that `node` has by its operator's shape function, from the values of its inputs.

    Nothing that a shape function asks of a dynamic size narrows that size: some operators ask which kernel would run.
    The Python dispatcher is what keeps symbols in operators that are made of others, such as pad.

    Raises VerificationError naming the node when the operator refuses its inputs.
    """
    if node.op == "get_attr":
        return program.shapes.fake(program.tensor(str(node.target)))
    if node.op == "output":
        return None
    if node.target in KEEP_SHAPE:
        return node.args[0].meta[KEY]  # type: ignore[union-attr]  # their schema starts with a tensor
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta[KEY])
    if kwargs.get("device") is not None:
        kwargs = {**kwargs, "device": "cpu"}
    try:
        with program.shapes.mode, torch.no_grad(), enable_python_dispatcher(), program.shapes.env.suppress_guards():
            function = _SHAPES.get(node.target, node.target)
            assert callable(function)
            return function(*args, **kwargs)
    except Exception as error:  # an operator's shape function may raise anything at all
        found = ", ".join(describe(program, v) for v in _tensors(args))
        raise VerificationError(
            f"{node.target} does not take these inputs: {str(error).splitlines()[0] if str(error) else error!r}",
            node=node,
            found=found,
        ) from error


def _recurrent(x: Tensor, state: Tensor, weights: Sequence[Tensor], *rest: Any) -> tuple[Tensor, Tensor]:
    """torch's own unrolls every step, which would fix their number.

    x [steps, batch, in] or with the first two changed, state [layers * directions, batch, hidden]. rest: whether there
    are biases, layers, dropout, train, whether both ways, whether the batch comes first.
    """
    each, layers, ways = 4 if rest[0] else 2, rest[1], 2 if rest[4] else 1
    fit = len(weights) == each * layers * ways and weights[0].shape[1] == x.shape[2]
    if not fit or weights[1].shape[1] != state.shape[2]:
        raise ValueError("weights do not fit the input, the state or the number of layers")
    return x.new_empty([*x.shape[:2], ways * state.shape[2]]), torch.empty_like(state)


_SHAPES: dict[Any, Any] = dict.fromkeys((aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input), _recurrent)
"""Operators whose sizes are not found by calling them on fake tensors."""


def _tensors(args: Any) -> list[Tensor]:
    flat: list[Tensor] = []
    fx.node.map_aggregate(args, lambda a: flat.append(a) if isinstance(a, Tensor) else None)
    return flat


def propagate(program: Program, nodes: Iterable[fx.Node] | None = None) -> None:
    """Refresh `meta["val"]` of the given nodes (all by default), in graph order."""
    specs = iter(program.signature.inputs)
    for node in program.graph.nodes if nodes is None else nodes:
        if node.op == "placeholder" and nodes is None:
            node.meta[KEY] = program.shapes.input(next(specs))
        elif node.op not in ("output", "placeholder"):
            node.meta[KEY] = infer(program, node)


def same(program: Program, left: Any, right: Any) -> bool:
    """Whether two propagated values have the same type: dtype and sizes, nested alike."""
    alike = isinstance(left, FakeTensor) and isinstance(right, FakeTensor) and left.dtype == right.dtype
    if alike and _static(left) and _static(right):
        return bool(left.shape == right.shape)
    return describe(program, left) == describe(program, right)


def _static(tensor: Tensor) -> bool:
    return all(type(size) is int for size in tensor.shape)
