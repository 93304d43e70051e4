"""The Program: one graph that runs at every stage, with its signature, tensors, sparsity and history."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.fx._lazy_graph_module import _LazyGraphModule, _make_graph_module, _use_lazy_graph_module

from . import placement as _placement
from . import shapes as _shapes
from .errors import SignatureError, TersorError
from .origin import KEY as ORIGIN
from .signature import Signature
from .sparsity import Pattern
from .stage import Stage

if TYPE_CHECKING:
    from .cost import Cost

aten = torch.ops.aten
REPLACES = "replaces"

_RECURRENT = (aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input)
_TRAINING_ARGUMENT = {
    aten.batch_norm.default: 5,
    aten.dropout.default: 2,
    aten.feature_dropout.default: 2,
    **dict.fromkeys(_RECURRENT, 6),
}
"""Operators whose argument at that place says whether the model trains."""


@dataclass(frozen=True)
class HistoryEntry:
    """What was done to a program: a pass, its options as text, what it said, and whether it changed anything."""

    name: str
    options: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    modified: bool = True


class Program:
    """A model as a graph of operators, runnable at every stage.

    The graph is functional: no operator writes to its inputs (batch norm's running statistics in training mode
    excepted), there are no nested graphs, and every tensor that is not an input is a parameter or buffer of `module`
    under the name that it had in the model. Inputs and outputs are flat in the graph; `signature` nests them.

    A pass owns the program that it is given and may edit `graph` in place, but tensors are shared between copies:
    replace them with `set_tensor`, never write into them.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        signature: Signature,
        *,
        name: str = "program",
        stage: Stage = Stage.FLOAT,
        sparsity: Mapping[str, Pattern] | None = None,
        history: Sequence[HistoryEntry] = (),
        example: Sequence[Tensor] | None = None,
        shapes: _shapes.ShapeContext | None = None,
    ) -> None:
        self.module = module
        self.signature = signature
        self.name = name
        self.stage = stage
        self.sparsity = dict(sparsity or {})
        self.history = tuple(history)
        self.example = None if example is None else tuple(example)
        self.shapes = shapes or _shapes.ShapeContext(signature.dims)

    @classmethod
    def build(cls, graph: fx.Graph, tensors: Mapping[str, Tensor], signature: Signature, **options: Any) -> Program:
        """A program from a graph whose get_attr targets are the keys of `tensors`; its shapes are propagated."""
        program = cls(_graph_module(graph, tensors), signature, **options)
        _shapes.propagate(program)
        return program

    # -- running ---------------------------------------------------------------------------------------------------

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the graph on inputs nested as the model's, and return outputs nested as the model's.

        Raises SignatureError where the inputs do not fit, or are on another device than the program.
        """
        inputs = self.signature.flatten(args, kwargs)
        self._refuse_elsewhere(inputs)
        return self.unflatten(self.run(inputs))

    def run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Run the graph on flat inputs that were checked already; flat outputs."""
        outputs: tuple[Tensor, ...] = self.module(*inputs)
        return outputs

    def unflatten(self, outputs: Iterable[Any]) -> Any:
        """Nest flat outputs as the model does."""
        return self.signature.outputs.unflatten(iter(outputs))

    def _refuse_elsewhere(self, inputs: Sequence[Tensor]) -> None:
        home = _placement.home_of(self)
        for spec, tensor in zip(self.signature.inputs, inputs, strict=True):
            if home is not None and tensor.device != home and not tensor.is_meta:
                raise SignatureError(
                    f"input {spec.name!r} is on another device than the program",
                    expected=str(home),
                    found=str(tensor.device),
                    hint=f"move one of them: {spec.name}.to({str(home)!r}), or program.to({str(tensor.device)!r})",
                )

    def train(self, mode: bool = True) -> Program:
        """Switch batch norm and dropout, that between recurrent layers too, to training, or back."""
        for node in self.graph.nodes:
            place = _TRAINING_ARGUMENT.get(node.target)
            if node.target is aten.batch_norm.default and node.args[3] is None:
                continue  # without running statistics it takes those of the batch in both modes
            if place is not None and node.args[place] is not mode:
                node.update_arg(place, mode)
        self.changed()
        self.module.training = mode
        return self

    def eval(self) -> Program:
        """Switch batch norm and dropout to inference."""
        return self.train(False)

    # -- the graph -------------------------------------------------------------------------------------------------

    @property
    def graph(self) -> fx.Graph:
        """The operators. Edit it freely, then let the pass manager (or `changed`) know."""
        return self.module.graph

    @property
    def placeholders(self) -> list[fx.Node]:
        """The inputs, in the order of `signature.inputs`."""
        return [node for node in self.graph.nodes if node.op == "placeholder"]

    @property
    def outputs(self) -> tuple[fx.Node, ...]:
        """The nodes that the program returns, in the order of `signature.output_names`."""
        (values,) = self.graph.output_node().args
        return tuple(values)  # type: ignore[arg-type]  # the verifier holds that an output is a tuple of nodes

    def changed(self) -> None:
        """Say that the graph was edited: code is generated again when it next runs."""
        self.module.recompile()

    def call(
        self, target: Any, args: Sequence[Any] = (), *, like: fx.Node, name: str | None = None, **kwargs: Any
    ) -> fx.Node:
        """Insert a call of an operator at the graph's insertion point, with its shape and its origin.

        `like` is the node that the new one stands for or serves: errors about the new node point to its source line.
        The node is named after its operator unless `name` is given; a number is added where the name is taken.
        """
        name = name or str(getattr(target, "_opname", target.__name__))
        node = self.graph.create_node("call_function", target, tuple(args), kwargs, name)
        _placement.place(node, self.device)
        self.describe(node, like)
        return node

    def attribute(self, name: str) -> fx.Node:
        """Insert a read of the tensor `name` at the graph's insertion point."""
        node = self.graph.get_attr(name)
        node.meta[_shapes.KEY] = _shapes.infer(self, node)
        return node

    def describe(self, node: fx.Node, like: fx.Node) -> None:
        """Give a new node its shape, and the origin of the node that it stands for."""
        node.meta[_shapes.KEY] = _shapes.infer(self, node)
        if ORIGIN in like.meta:
            node.meta[ORIGIN] = like.meta[ORIGIN]
        node.meta[REPLACES] = like.meta.get(REPLACES, like.name)

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Let every user of `old` use `new`, and erase `old`."""
        old.replace_all_uses_with(new)
        self.graph.erase_node(old)

    # -- tensors ---------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """Every parameter and buffer by name; a tied tensor stands under each of its names."""
        return {
            **_named(self.module.named_parameters(remove_duplicate=False)),
            **_named(self.module.named_buffers(remove_duplicate=False)),
        }

    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable tensors by name, each once."""
        return dict(self.module.named_parameters())

    def tensor(self, name: str) -> Tensor:
        """The parameter or buffer of that name. Raises KeyError."""
        owner, leaf = self._owner(name)
        value = getattr(owner, leaf, None)
        if not isinstance(value, Tensor):
            raise KeyError(name)
        return value

    def constant(self, argument: object) -> Tensor | None:
        """The tensor behind a node that reads a parameter or buffer, else None."""
        if isinstance(argument, fx.Node) and argument.op == "get_attr":
            return self.tensor(str(argument.target))
        return None

    def set_tensor(self, name: str, value: Tensor) -> None:
        """Replace a parameter or buffer, under all the names that it is tied to; a parameter stays one."""
        self.set_tensors({name: value})

    def set_tensors(self, values: Mapping[str, Tensor]) -> None:
        """Replace several at once, in time that grows with the program and not with their number times that.

        A value from another device goes to that of the tensor it replaces.
        """
        new: dict[int, Tensor] = {}
        for name, value in values.items():
            old = self.tensor(name)
            trained = isinstance(old, nn.Parameter)
            there = value.detach().to(old.device)
            new[id(old)] = nn.Parameter(there, old.requires_grad) if trained else there
        self._put(new)

    def _put(self, new: Mapping[int, Tensor]) -> None:
        """Let tensors stand, under all their names, for those of these identities."""
        for alias, tensor in self.tensors().items():
            if id(tensor) in new:
                owner, leaf = self._owner(alias)
                setattr(owner, leaf, new[id(tensor)])

    def add_tensor(self, name: str, value: Tensor) -> str:
        """Add a tensor under `name`, or `name_1`, ... where that is taken; returns the name.

        An nn.Parameter becomes a parameter, anything else a buffer; it goes to the device of the other tensors.
        """
        value = _placement.on(value, _placement.home_of(self))
        unique, count = name, 0
        while self._taken(unique):
            count += 1
            unique = f"{name}_{count}"
        _attach(self.module, unique, value)
        return unique

    def remove_unused_tensors(self) -> list[str]:
        """Delete the tensors that no node reads, with their sparsity entries; returns their names.

        A tied tensor that is read under one of its names keeps them all.
        """
        used = {id(self.tensor(str(n.target))) for n in self.graph.nodes if n.op == "get_attr"}
        unused = [name for name, tensor in self.tensors().items() if id(tensor) not in used]
        for name in unused:
            owner, leaf = self._owner(name)
            delattr(owner, leaf)
            self.sparsity.pop(name, None)
        return unused

    def _owner(self, name: str) -> tuple[nn.Module, str]:
        path, _, leaf = name.rpartition(".")
        try:
            return self.module.get_submodule(path), leaf
        except AttributeError:
            raise KeyError(name) from None

    def _taken(self, name: str) -> bool:
        try:
            owner, leaf = self._owner(name)
        except KeyError:
            return False
        return hasattr(owner, leaf)

    # -- devices ---------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the tensors are, all on one device; without any, where the example is, or the CPU."""
        return _placement.device_of(self)

    def to(self, device: torch.device | str) -> Program:
        """The program on another device: a copy with tensors and example there, or itself where it is there already.

        What is computed there has the same bits at the integer stage; a float differs by its rounding.
        """
        return _placement.moved(self, torch.device(device))

    # -- whole programs --------------------------------------------------------------------------------------------

    def copy(self) -> Program:
        """A program with a graph of its own that shares this one's tensors."""
        graph = fx.Graph()
        mapping: dict[fx.Node, fx.Node] = {}
        graph.output(graph.graph_copy(self.graph, mapping))
        for old, new in mapping.items():
            new.name = old.name
            new.meta = dict(old.meta)
        return Program(
            _graph_module(graph, self.tensors()),
            self.signature,
            name=self.name,
            stage=self.stage,
            sparsity=self.sparsity,
            history=self.history,
            example=self.example,
            shapes=self.shapes,
        )

    def recorded(self, entry: HistoryEntry) -> Program:
        """Note in the history what was done."""
        self.history = (*self.history, entry)
        return self

    def verify(self) -> Program:
        """Check every rule of the program's stage. Raises VerificationError naming the node; returns the program."""
        from .verifier import verify

        verify(self)
        return self

    def cost(self) -> Cost:
        """Parameters, bytes, multiply-accumulates and peak activation memory, per node and in total."""
        from .cost import cost

        return cost(self)

    def save(self, path: str | Path) -> Path:
        """Write one file, without pickle. Raises ArchiveError where it cannot be written."""
        from .archive import save

        return save(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Program:
        """Read a file that `save` wrote. Raises ArchiveError; runs no code from the file."""
        from .archive import load

        return load(Path(path))

    def __str__(self) -> str:
        from .printer import to_text

        return to_text(self)

    def __repr__(self) -> str:
        return f"<Program {self.name}: {self.stage}, {len(self.graph.nodes)} nodes, {self.signature.describe()}>"


def _named(pairs: Iterator[tuple[str, Any]]) -> dict[str, Tensor]:
    return dict(pairs)


def _attach(root: nn.Module, name: str, value: Tensor) -> None:
    owner = root
    *path, leaf = name.split(".")
    for part in path:
        if not hasattr(owner, part):
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    if isinstance(value, nn.Parameter):
        owner.register_parameter(leaf, value)
    else:
        owner.register_buffer(leaf, value)


def _graph_module(graph: fx.Graph, tensors: Mapping[str, Tensor]) -> fx.GraphModule:
    """A module that holds the tensors by name and generates the graph's code when it first runs."""
    with _use_lazy_graph_module(True):
        module = _make_graph_module(nn.Module(), fx.Graph())
    assert isinstance(module, _LazyGraphModule)
    for name, tensor in tensors.items():
        _attach(module, name, tensor)
    module.graph = graph
    return module


def expect_program(found: object) -> None:
    """Raise TersorError where something else stands in a program's place, as the model that one is traced from."""
    if not isinstance(found, Program):
        hint = "ts.trace(model, example) makes one" if isinstance(found, nn.Module) else None
        raise TersorError("not a program", expected="a tersor.Program", found=type(found).__name__, hint=hint)
