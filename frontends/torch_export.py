"""The PyTorch frontend: a module and example inputs to a Program, through torch.export."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, TensorArgument

from tersor.ir import opaque
from tersor.ir.errors import TraceError
from tersor.ir.names import legal
from tersor.ir.origin import KEY as ORIGIN
from tersor.ir.origin import Origin
from tersor.ir.program import HistoryEntry, Program
from tersor.ir.signature import Signature, TensorSpec
from tersor.ir.structure import Structure, flatten

from .dynamic import Dynamic, DynamicDims
from .export_errors import explain
from .model_settings import settings_for_export

aten = torch.ops.aten

_CHECKS = {
    aten._assert_tensor_metadata.default,
    aten._assert_scalar.default,
    aten._assert_async.msg,
    aten._assert_async.default,
    aten.sym_constrain_range_for_size.default,
    aten.sym_constrain_range.default,
    torch._check,
}
"""Assertions about sizes; the signature checks those."""

_RESHAPES = {aten.view.default: aten.reshape.default, aten._unsafe_view.default: aten.reshape.default}


def trace(
    model: nn.Module,
    args: Sequence[Any] | Tensor = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic: Dynamic | None = None,
    *,
    name: str | None = None,
) -> Program:
    """Trace a PyTorch model into a Program.

    args, kwargs: example inputs, as the model is called; a lone tensor stands for one positional input.
    dynamic: the dimensions that change from call to call, by input name: `{"x": {0: "batch"}}`. An input inside a
        container is named by its path, `"batch.input_ids"`.

    The model is traced in inference mode, its own mode and weights are left as they were (weights are copied), and
    `Program.train()` switches batch norm and dropout later. The graph is functional ATen, views as reshape.

    Raises TraceError with the user's source line where torch.export cannot follow the model, or where a dimension
    that should be dynamic turns out to have one size.
    """
    args = (args,) if isinstance(args, Tensor) else tuple(args)
    kwargs = dict(kwargs or {})
    if not isinstance(model, nn.Module):
        raise TraceError("only a torch.nn.Module can be traced", expected="torch.nn.Module", found=type(model).__name__)
    dims = DynamicDims(model, args, kwargs, dynamic or {})
    with _quiet_inference(model), settings_for_export(model, kwargs) as (extra, notes):
        exported = _export(model, *dims.enlarged(args, kwargs | extra), dims)
        opaque.hide(exported.graph)
        exported = exported.run_decompositions({})
        program = _Importer(exported, model, dims, args, kwargs | extra).program(name or type(model).__name__)
    return program.recorded(HistoryEntry("trace", {"model": type(model).__qualname__}, tuple(notes)))


def _export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dims: DynamicDims) -> ExportedProgram:
    try:
        return torch.export.export(model, args, kwargs, dynamic_shapes=dims.for_export(kwargs), strict=False)
    except Exception as error:  # torch.export passes on whatever the model or a shape function raises
        raise explain(error, model) from error


@contextmanager
def _quiet_inference(model: nn.Module) -> Iterator[None]:
    """Inference mode for every sub-module, restored after; attention as operators instead of its fused fast path."""
    modes = {module: module.training for module in model.modules()}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        model.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.enable_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, mode in modes.items():
            module.training = mode


class _Importer:
    """One exported program on its way to a Program: a fresh graph with tensors as attributes and flat inputs."""

    def __init__(
        self,
        exported: ExportedProgram,
        model: nn.Module,
        dims: DynamicDims,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.exported = exported
        self.model = model
        self.dims = dims
        self.example, self.structure = flatten((args, kwargs))
        self.graph = fx.Graph()
        self.nodes: dict[fx.Node, Any] = {}
        self.tensors: dict[str, Tensor] = {}

    def program(self, name: str) -> Program:
        self._refuse_mutation()
        opaque.reveal(self.exported.graph)
        self._import_inputs()
        for node in self.exported.graph.nodes:
            if node.op == "call_function":
                self._import_call(node)
            elif node.op == "get_attr":
                self._import_subgraph_read(node)
        results, outputs = self._outputs()
        self.graph.output(tuple(results))
        self.graph.eliminate_dead_code()
        program = Program.build(
            self.graph, self.tensors, self._signature(outputs), name=name, example=[t.detach() for t in self.example]
        )
        program.remove_unused_tensors()
        return program

    def _refuse_mutation(self) -> None:
        kinds = (OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION, OutputKind.PARAMETER_MUTATION)
        for spec in self.exported.graph_signature.output_specs:
            if spec.kind in kinds:
                node = next(n for n in self.exported.graph.nodes if n.name == spec.arg.name)
                node.meta[ORIGIN] = Origin.from_export(node.meta)
                raise TraceError(
                    f"the model writes to {spec.target!r} while it runs",
                    node=node,
                    expected="a forward that returns its results and changes nothing",
                    hint="return the new value as an output and pass it in as an input, or drop the state",
                )

    def _import_inputs(self) -> None:
        specs = {spec.arg.name: spec for spec in self.exported.graph_signature.input_specs}
        placeholders = self.exported.graph.find_nodes(op="placeholder")
        given = [node for node in placeholders if specs[node.name].kind is InputKind.USER_INPUT]
        paths = iter(self.dims.names)
        for node in given:
            argument = specs[node.name].arg
            if isinstance(argument, ConstantArgument):
                self.nodes[node] = argument.value
            else:
                self.nodes[node] = self.graph.placeholder(legal(next(paths)).replace(".", "_"))
        aliases = self._aliases()
        copies: dict[int, Tensor] = {}
        for node in placeholders:
            if node not in self.nodes:
                self._import_tensor(node, str(specs[node.name].target), aliases, copies)

    def _import_tensor(
        self, node: fx.Node, name: str, aliases: Mapping[int, list[str]], copies: dict[int, Tensor]
    ) -> None:
        """Read a parameter, buffer or constant; a tied one is copied once and stands under each of its names."""
        tensor = self.exported.state_dict[name] if name in self.exported.state_dict else self.exported.constants[name]
        copy = copies.setdefault(id(tensor), _copy(tensor))
        for alias in [name, *aliases.get(id(tensor), [])]:
            self.tensors[legal(alias)] = copy
        self.nodes[node] = self.graph.get_attr(legal(name))

    def _aliases(self) -> dict[int, list[str]]:
        """The names of each of the model's tensors; a tied one has several."""
        names: dict[int, list[str]] = {}
        pairs = [
            *self.model.named_parameters(remove_duplicate=False),
            *self.model.named_buffers(remove_duplicate=False),
        ]
        for name, tensor in pairs:
            names.setdefault(id(tensor), []).append(name)
        return names

    def _import_call(self, node: fx.Node) -> None:
        if node.target in _CHECKS:
            return
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            node.meta[ORIGIN] = Origin.from_export(node.meta)
            raise TraceError(
                f"the model calls {node.target.name()}, which holds a graph of its own",
                node=node,
                expected="operators on tensors, without data-dependent control flow",
                hint="make the branch or loop a fixed part of the model, or trace each branch on its own",
            )
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: self.nodes[n])
        target = _RESHAPES.get(node.target, node.target)
        name = node.name.replace("view", "reshape") if target is not node.target else node.name
        new = self.graph.create_node("call_function", target, args, kwargs, name)
        origin = Origin.from_export(node.meta)
        if origin is not None:
            new.meta[ORIGIN] = origin
        self.nodes[node] = new

    def _import_subgraph_read(self, node: fx.Node) -> None:
        """A nested graph is read before the call that holds it, which is then refused; nothing else is a get_attr."""
        self.nodes[node] = None

    def _outputs(self) -> tuple[list[Any], Structure]:
        (returned,) = self.exported.graph.output_node().args
        produced = {node.name: node for node in returned if isinstance(node, fx.Node)}  # type: ignore[union-attr]
        leaves: list[Any] = []
        for spec in self.exported.graph_signature.output_specs:
            if isinstance(spec.arg, TensorArgument):
                leaves.append(self.nodes[produced[spec.arg.name]])
            elif isinstance(spec.arg, ConstantArgument):
                leaves.append(spec.arg.value)
            else:
                raise TraceError(
                    f"the model returns {spec.arg.name!r}, which is a size and not a tensor",
                    expected="tensors and constants",
                    hint="return torch.tensor(...) of it, or leave it out",
                )
        nested = torch.utils._pytree.tree_unflatten(
            [_Leaf(leaf) if isinstance(leaf, fx.Node) else leaf for leaf in leaves], self.exported.call_spec.out_spec
        )
        stand_ins, structure = flatten(nested)
        return [leaf.node for leaf in stand_ins if isinstance(leaf, _Leaf)], structure

    def _signature(self, outputs: Structure) -> Signature:
        specs = tuple(
            TensorSpec(name, tensor.dtype, self.dims.shape(name, tensor))
            for name, tensor in zip(self.dims.names, self.example, strict=True)
        )
        args, kwargs = self.structure.children
        ranges = self.dims.ranges(self.exported)
        return Signature(specs, args, kwargs, outputs, self.dims.parameters, ranges)


class _Leaf(Tensor):
    """Stands for a node's tensor while the output's nesting is read."""

    node: fx.Node

    def __new__(cls, node: fx.Node) -> _Leaf:
        leaf = torch.empty(0).as_subclass(cls)
        leaf.node = node
        return leaf


def _copy(tensor: Tensor) -> Tensor:
    copy = tensor.detach().clone()
    return nn.Parameter(copy, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy
