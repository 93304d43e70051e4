"""The PyTorch frontend: a module and example inputs to a Program, through torch.export."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx._lazy_graph_module import _use_lazy_graph_module

from tersor.ir import opaque
from tersor.ir.errors import TraceError
from tersor.ir.names import legal
from tersor.ir.origin import KEY as ORIGIN
from tersor.ir.origin import Origin
from tersor.ir.placement import move
from tersor.ir.program import HistoryEntry, Program
from tersor.ir.signature import Signature, TensorSpec

from .dynamic import Dynamic, DynamicDims
from .export_errors import explain
from .flat_model import PREFIX, FlatModel
from .model_settings import settings_for_export
from .silence import silence

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

_RESHAPES: dict[Any, Any] = {aten.view.default: aten.reshape.default, aten._unsafe_view.default: aten.reshape.default}
_KEEPS_STATE = "return the new value as an output and pass it in as an input, or drop the state"
_PREPARES = "a model that prepares its weights in its first call has to be called once before it is traced"
_MUTATIONS = (OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION, OutputKind.PARAMETER_MUTATION)


def trace(
    model: nn.Module,
    args: Sequence[Any] | Tensor = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic: Dynamic | None = None,
    *,
    name: str | None = None,
) -> Program:
    """Trace a PyTorch model into a Program.

    args, kwargs: example inputs, as the model is called; a lone tensor stands for one positional input. Tensors may be
        nested in tuples, lists, dicts, namedtuples and dataclasses; numbers, strings and None among them become fixed.
    dynamic: the dimensions that change from call to call, by input name: `{"x": {0: "batch"}}`. An input inside a
        container is named by its path, `"batch.input_ids"`.

    The program is where the model is: on the CPU or on a GPU, and the example has to be there too.

    The model is traced in inference mode, its own mode and weights are left as they were (weights are copied), and
    `Program.train()` switches batch norm and dropout later. The graph is functional ATen, views as reshape.

    Raises TraceError with the user's source line where torch.export cannot follow the model, or where a dimension
    that should be dynamic turns out to have one size.
    """
    if not isinstance(model, nn.Module):
        raise TraceError("only a torch.nn.Module can be traced", expected="torch.nn.Module", found=type(model).__name__)
    args = (args,) if isinstance(args, Tensor) else tuple(args)
    _refuse_many_devices(model)
    with silence(), _inference(model), settings_for_export(model, kwargs or {}) as (extra, notes):
        dims = DynamicDims(model, args, {**(kwargs or {}), **extra}, dynamic or {})
        flat = FlatModel(model, dims.structure)
        exported = _export(flat, dims)
        program = _Importer(exported, flat, dims).program(name or type(model).__name__)
    return program.recorded(HistoryEntry("trace", {"model": type(model).__qualname__}, tuple(notes)))


def _refuse_many_devices(model: nn.Module) -> None:
    found = {str(tensor.device) for tensor in (*model.parameters(), *model.buffers())}
    if len(found) > 1:
        raise TraceError(
            "the model is spread over devices",
            expected="all parameters and buffers on one",
            found=", ".join(sorted(found)),
            hint=f"model.to({max(found)!r}), or model.cpu() where one device has no room for it",
        )


def _export(flat: FlatModel, dims: DynamicDims) -> ExportedProgram:
    """The model as functional operators, batch norm and dropout hidden behind their stand-ins."""
    example, dynamic_shapes = dims.example_for_export(), dims.for_export()
    try:
        with _use_lazy_graph_module(True):  # torch makes a score of modules on the way, most of which never run
            exported = torch.export.export(flat, example, dynamic_shapes=dynamic_shapes, strict=False)
            opaque.hide(exported.graph)
            functional: ExportedProgram = exported.run_decompositions({})
        return functional
    except TraceError:
        raise
    except Exception as error:  # torch.export passes on whatever a shape function raises
        raise explain(error, flat.model) from error


@contextmanager
def _inference(model: nn.Module) -> Iterator[None]:
    """Inference mode for every sub-module, restored after; attention as operators instead of its fused fast path."""
    modes = {module: module.training for module in model.modules()}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        model.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        # Under no_grad, regions of the model that say so too leave no mark in the graph.
        with torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, mode in modes.items():
            module.training = mode


class _Importer:
    """One exported program on its way to a Program: a fresh graph with tensors as attributes and flat inputs."""

    def __init__(self, exported: ExportedProgram, flat: FlatModel, dims: DynamicDims) -> None:
        self.exported = exported
        self.flat = flat
        self.dims = dims
        self.graph = fx.Graph()
        self.nodes: dict[fx.Node, Any] = {}
        self.tensors: dict[str, Tensor] = {}

    def program(self, name: str) -> Program:
        opaque.reveal(self.exported.graph)
        self._refuse_mutation()
        self._import_inputs()
        for node in self.exported.graph.nodes:
            if node.op == "call_function":
                self._import_call(node)
        self.graph.output(tuple(self.nodes[node] for node in _returned(self.exported)))
        self.graph.eliminate_dead_code()
        program = Program.build(self.graph, self.tensors, self._signature(), name=name, example=self.dims.example)
        program.remove_unused_tensors()
        move(program, self._home())
        return program

    def _home(self) -> torch.device:
        """The model's device: that of its first tensor, or of its example. Constants that it makes are moved there."""
        model = self.flat.model
        tensors = (*model.parameters(), *model.buffers(), *self.dims.example)
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    def _refuse_mutation(self) -> None:
        for spec in self.exported.graph_signature.output_specs:
            if spec.kind in _MUTATIONS:
                node = next(n for n in self.exported.graph.nodes if n.name == spec.arg.name)
                raise TraceError(
                    f"the model writes to {self._name_of(str(spec.target))!r} while it runs",
                    node=_with_origin(node),
                    expected="a forward that returns its results and changes nothing",
                    hint=_PREPARES if spec.kind is OutputKind.PARAMETER_MUTATION else _KEEPS_STATE,
                )

    def _name_of(self, target: str) -> str:
        """A tensor's or an input's name in the user's own words."""
        inputs = {node.name: name for node, name in zip(self._given(), self.dims.names, strict=True)}
        return inputs.get(target, target.removeprefix(PREFIX))

    def _given(self) -> list[fx.Node]:
        """The placeholders that stand for the model's inputs, in order."""
        kinds = {spec.arg.name: spec.kind for spec in self.exported.graph_signature.input_specs}
        placeholders = self.exported.graph.find_nodes(op="placeholder")
        return [node for node in placeholders if kinds[node.name] is InputKind.USER_INPUT]

    def _import_inputs(self) -> None:
        for node, path in zip(self._given(), self.dims.names, strict=True):
            self.nodes[node] = self.graph.placeholder(legal(path).replace(".", "_"))
        targets = {spec.arg.name: str(spec.target) for spec in self.exported.graph_signature.input_specs}
        aliases, copies = self._aliases(), dict[int, Tensor]()
        for node in self.exported.graph.find_nodes(op="placeholder"):
            if node not in self.nodes:
                self._import_tensor(node, targets[node.name], aliases, copies)

    def _import_tensor(
        self, node: fx.Node, target: str, aliases: Mapping[int, list[str]], copies: dict[int, Tensor]
    ) -> None:
        """Read a parameter, buffer or constant; a tied one is copied once and stands under each of its names."""
        exported = self.exported
        tensor = exported.state_dict[target] if target in exported.state_dict else exported.constants[target]
        if id(tensor) not in copies:
            copies[id(tensor)] = _copy(tensor)
        name = target.removeprefix(PREFIX)
        for alias in [name, *aliases.get(id(tensor), [])]:
            self.tensors[legal(alias)] = copies[id(tensor)]
        self.nodes[node] = self.graph.get_attr(legal(name))

    def _aliases(self) -> dict[int, list[str]]:
        """The names of each of the model's tensors; a tied one has several."""
        model = self.flat.model
        names: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        for name, buffer in model.named_buffers(remove_duplicate=False):
            names.setdefault(id(buffer), []).append(name)
        return names

    def _import_call(self, node: fx.Node) -> None:
        if node.target in _CHECKS:
            return
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            raise TraceError(
                f"the model calls {node.target.name()}, which holds a graph of its own",
                node=_with_origin(node),
                expected="operators on tensors, without data-dependent control flow",
                hint="make the branch or loop a fixed part of the model, or trace each branch on its own",
            )
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: self.nodes[n])
        target = _RESHAPES.get(node.target, node.target)
        if target is aten.type_as.default:  # the dtype is known here, and the other tensor need not be read
            target, args, kwargs = aten._to_copy.default, args[:1], {"dtype": node.meta["val"].dtype}
        base = re.sub(r"_\d+$", "", node.name)  # numbered again, since the checks that are left out leave gaps
        name = "reshape" if target is aten.reshape.default else base
        new = self.graph.create_node("call_function", target, args, kwargs, name)
        origin = _origin(node)
        if origin is not None:
            new.meta[ORIGIN] = origin
        self.nodes[node] = new

    def _signature(self) -> Signature:
        sizes = [node.meta["val"].shape for node in self._given()]
        ranges = self.dims.ranges(sizes, self.exported.range_constraints)
        specs = tuple(
            TensorSpec(name, tensor.dtype, self.dims.shape(name, tensor))
            for name, tensor in zip(self.dims.names, self.dims.example, strict=True)
        )
        args, kwargs = self.dims.structure.children
        return Signature(specs, args, kwargs, self.flat.outputs, self.dims.parameters, ranges)


def _returned(exported: ExportedProgram) -> tuple[fx.Node, ...]:
    (returned,) = exported.graph.output_node().args
    assert isinstance(returned, tuple | list)
    return tuple(node for node in returned if isinstance(node, fx.Node))


def _origin(node: fx.Node) -> Origin | None:
    """Where the node comes from, with the module's path as in the user's model."""
    origin = Origin.from_export(node.meta)
    if origin is None:
        return None
    return replace(origin, module=f"{origin.module}.".removeprefix(PREFIX).rstrip("."))


def _with_origin(node: fx.Node) -> fx.Node:
    node.meta[ORIGIN] = _origin(node)
    return node


def _copy(tensor: Tensor) -> Tensor:
    copy = tensor.detach().clone()
    return nn.Parameter(copy, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy
