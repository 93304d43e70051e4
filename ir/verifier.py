"""The rules that a program keeps, by stage. Each rule is a function; the first that is broken is raised.

Rules of every stage: the graph is well formed; only operators of the allowed namespaces are called, none of which
writes to its inputs; views are `reshape`; every tensor that is read exists, none is left over, all are on one device;
shapes and dtypes are what the operators' shape functions give; inputs and outputs fit the signature; sparsity holds; no
pass left a note for another in `meta`. Then the stage's own, of which those about integers are in `integer_stage`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from . import integer_stage
from .block_operators import FAKE_QUANTIZE_BLOCKS, FAKE_QUANTIZE_DYNAMIC
from .errors import VerificationError
from .operators import FAKE_QUANTIZE, OBSERVE
from .origin import KEY as ORIGIN
from .placement import misplaced
from .printer import operator_name
from .shapes import KEY, SYMBOLIC_OPERATORS, describe, infer, same
from .stage import Stage

if TYPE_CHECKING:
    from .program import Program

aten = torch.ops.aten
Rule = Callable[["Program"], None]

_META_KEYS = frozenset({KEY, ORIGIN, "replaces"})
_VIEWS = frozenset({aten.view.default, aten._unsafe_view.default})
_WRITES_STATE = frozenset({aten.batch_norm.default})
_NAMESPACES = {
    Stage.FLOAT: frozenset({"aten"}),
    Stage.FAKE_QUANT: frozenset({"aten", "tersor"}),
    Stage.INTEGER: frozenset({"aten", "tersor"}),
}


def verify(program: Program, *, shapes: Iterable[fx.Node] | None = None) -> None:
    """Check every rule; `shapes` limits the shape check, the dearest, to those nodes.

    Raises VerificationError with the node, what was expected, what was found and the user's source line.
    """
    for rule in RULES:
        rule(program)
    check_shapes(program, program.graph.nodes if shapes is None else shapes)


def well_formed(program: Program) -> None:
    """The graph is in order, ends in one output that is a flat tuple of nodes, and names what it reads."""
    try:
        program.graph.lint()
    except RuntimeError as error:
        raise VerificationError(f"the graph is not well formed: {str(error).splitlines()[0]}") from error
    outputs = program.graph.find_nodes(op="output")
    if len(outputs) != 1 or outputs[0] is not next(iter(reversed(program.graph.nodes))):
        raise VerificationError("a graph ends in its one output", found=f"{len(outputs)} outputs")
    (returned,) = outputs[0].args
    if not isinstance(returned, tuple) or not all(isinstance(node, fx.Node) for node in returned):
        raise VerificationError("a program returns a flat tuple of nodes", found=str(returned))


def operators_allowed(program: Program) -> None:
    """Every call is of a functional operator that the stage admits."""
    allowed = _NAMESPACES[program.stage]
    for node in program.graph.nodes:
        if node.op in ("call_module", "call_method"):
            raise VerificationError(f"{node.op} is not part of the IR", node=node, expected="call_function")
        if node.op != "call_function" or node.target in SYMBOLIC_OPERATORS:
            continue
        target = node.target
        if not isinstance(target, torch._ops.OpOverload):
            raise VerificationError("not an operator", node=node, expected="torch.ops...", found=repr(target))
        if target.namespace not in allowed:
            expected = f"an operator of {', '.join(sorted(allowed))} at stage {program.stage}"
            raise VerificationError("operator of a foreign library", node=node, expected=expected)
        if target._schema.is_mutable and target not in _WRITES_STATE:
            raise VerificationError("the operator writes to its input", node=node, expected="its functional form")
        if target in _VIEWS:
            raise VerificationError("views are written as aten.reshape", node=node, expected="aten.reshape")


def no_leftovers(program: Program) -> None:
    """`meta` holds shapes and origins only: an annotation is consumed by the pass that it was written for."""
    for node in program.graph.nodes:
        left = node.meta.keys() - _META_KEYS
        if left:
            raise VerificationError(
                f"annotations {sorted(left)} were left behind", node=node, hint="the pass that reads them deletes them"
            )


def tensors_exist(program: Program) -> None:
    """What is read exists, what exists is read, and sparsity is promised of parameters that exist."""
    tensors = program.tensors()
    reads = {str(node.target): node for node in program.graph.nodes if node.op == "get_attr"}
    for name, node in reads.items():
        if name not in tensors:
            raise VerificationError(f"reads {name!r}, which does not exist", node=node, hint="program.add_tensor first")
    used = {id(tensors[name]) for name in reads}
    dangling = [name for name, tensor in tensors.items() if id(tensor) not in used]
    if dangling:
        raise VerificationError(
            f"{len(dangling)} tensors are not read by any node",
            found=", ".join(dangling[:5]),
            hint="program.remove_unused_tensors()",
        )
    for name, pattern in program.sparsity.items():
        if name not in tensors:
            raise VerificationError(f"sparsity is promised of {name!r}, which does not exist", found=str(pattern))
        broken = pattern.violation(tensors[name].detach())
        if broken is not None:
            raise VerificationError(f"{name!r} is not sparse as promised", expected=str(pattern), found=broken)


def one_device(program: Program) -> None:
    """Every tensor that is read or made is on the program's device."""
    for node, found in misplaced(program):
        raise VerificationError(
            "a tensor is on another device than the program",
            node=node,
            expected=str(program.device),
            found=str(found),
            hint="program.add_tensor and program.call put what they add where the program is",
        )


def signature_fits(program: Program) -> None:
    """Inputs stand for the signature's specs one by one, and there is an output for each leaf."""
    inputs, outputs = program.placeholders, program.outputs
    if len(inputs) != len(program.signature.inputs):
        raise VerificationError(
            "the graph's inputs are not the signature's", expected=program.signature.describe(), found=len(inputs)
        )
    for node, spec in zip(inputs, program.signature.inputs, strict=True):
        expected, found = str(spec).split(": ", 1)[1], describe(program, node.meta.get(KEY))
        if expected != found:
            raise VerificationError(f"input {spec.name!r} changed", node=node, expected=expected, found=found)
    if len(outputs) != program.signature.outputs.leaves:
        raise VerificationError(
            "the number of outputs changed", expected=program.signature.outputs.leaves, found=len(outputs)
        )


def quantization_well_formed(program: Program) -> None:
    """Scales are positive and finite, zero points on the grid, and per-channel vectors as long as their axis."""
    for node in program.graph.find_nodes(op="call_function", target=FAKE_QUANTIZE):
        x, scale, zero_point, axis, quant_min, quant_max = node.args
        _check_grid(node, program.constant(scale), program.constant(zero_point), int(quant_min), int(quant_max))
        size = 1 if axis is None else x.meta[KEY].shape[axis]
        for argument in (scale, zero_point):
            shape = tuple(argument.meta[KEY].shape)
            if shape != (() if axis is None else (size,)):
                raise VerificationError(
                    "quantization parameters do not fit their axis", node=node, expected=f"[{size}]", found=shape
                )


def blocks_well_formed(program: Program) -> None:
    """Scales and zero points of blocks have the shape of the value, with one entry a block along the axis."""
    for node in program.graph.find_nodes(op="call_function", target=FAKE_QUANTIZE_BLOCKS):
        x, scale, zero_point, axis, block, quant_min, quant_max = node.args
        _check_grid(node, program.constant(scale), program.constant(zero_point), int(quant_min), int(quant_max))
        shape = list(x.meta[KEY].shape)
        if not -len(shape) <= axis < len(shape) or block < 1:
            raise VerificationError("an axis or a block size that is none", node=node, found=(axis, block))
        shape[axis] = -(-shape[axis] // block)
        for argument in (scale, zero_point):
            if list(argument.meta[KEY].shape) != shape:
                found = list(argument.meta[KEY].shape)
                raise VerificationError(
                    "block parameters do not fit their value", node=node, expected=shape, found=found
                )


def _check_grid(node: fx.Node, scale: Tensor | None, zero_point: Tensor | None, qmin: int, qmax: int) -> None:
    if scale is None or zero_point is None:
        raise VerificationError("scale and zero point are tensors of the program", node=node)
    if qmin >= qmax:
        raise VerificationError("an empty grid", node=node, expected="quant_min < quant_max", found=(qmin, qmax))
    if not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise VerificationError("a scale is not positive and finite", node=node, found=f"{scale.min().item():g}")
    if zero_point.is_floating_point() or int(zero_point.min()) < qmin or int(zero_point.max()) > qmax:
        raise VerificationError("a zero point is off its grid", node=node, expected=f"an integer in {qmin}..{qmax}")


def stage_rules(program: Program) -> None:
    """A float program holds no quantization."""
    if program.stage is not Stage.FLOAT:
        return
    for target in (FAKE_QUANTIZE, FAKE_QUANTIZE_BLOCKS, FAKE_QUANTIZE_DYNAMIC, OBSERVE):
        for node in program.graph.find_nodes(op="call_function", target=target):
            raise VerificationError("quantization in a float program", node=node, expected="stage fake_quant")


def check_shapes(program: Program, nodes: Iterable[fx.Node]) -> None:
    """Each node's recorded type is the one that its operator's shape function gives."""
    for node in nodes:
        if node.op in ("placeholder", "output"):
            continue
        if KEY not in node.meta:
            raise VerificationError("the node has no shape", node=node, hint="create nodes with program.call(...)")
        inferred = infer(program, node)
        if not same(program, node.meta[KEY], inferred):
            raise VerificationError(
                f"the shape recorded for {operator_name(node.target)} is stale",
                node=node,
                expected=describe(program, inferred),
                found=describe(program, node.meta[KEY]),
                hint="tersor.ir.shapes.propagate(program) after changing shapes",
            )


RULES: tuple[Rule, ...] = (
    tensors_exist,
    well_formed,
    operators_allowed,
    no_leftovers,
    one_device,
    signature_fits,
    quantization_well_formed,
    blocks_well_formed,
    stage_rules,
    *integer_stage.RULES,
)
