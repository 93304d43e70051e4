"""The pass manager: checks the order, runs the passes, and checks each against the graph that it was given."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, fx

from tersor.ir.errors import PassError, TersorError, VerificationError
from tersor.ir.example import example_of
from tersor.ir.program import REPLACES, Program, expect_program
from tersor.ir.shapes import KEY
from tersor.ir.stage import Stage
from tersor.ir.verifier import verify

from .base import Pass, Promise, finished
from .checkpoint import Checkpoints
from .compare import Difference, coarsest, difference, first_difference, shape_mismatch, within_rounding
from .console import progress_bar
from .full_float32 import full_float32
from .options import check_options
from .progress import Listener, listening
from .report import PipelineResult, Report, ReportRow


class PassManager:
    """Runs passes in order, each on a copy of the program before it.

    Before anything runs, the order is checked: every pass must take the stage that the one before it leaves. After each
    pass the program is verified, and its outputs on the example inputs are compared with those before the pass, judged
    by the pass's own promise. A pass that breaks its promise is named, with the first node that differs.

    verify: False leaves out the verification and the comparison.
    checkpoint: a folder that keeps the program after each pass; a later run with the same program and passes goes on
        where this one stopped.
    progress: show a progress bar; None shows it where stderr is a terminal.
    watch: called with the row and the program before the first pass, and after each pass that runs now. It may measure
        the program, and keeps its hands off it.
    """

    def __init__(
        self,
        passes: Sequence[Pass],
        *,
        verify: bool = True,
        checkpoint: str | Path | None = None,
        progress: bool | None = None,
        watch: Callable[[ReportRow, Program], None] | None = None,
    ) -> None:
        for step in _as_sequence(passes):
            if not isinstance(step, Pass):
                hint = f"{step.__name__}()" if isinstance(step, type) else None
                raise PassError("not a pass", expected="an instance of tersor.Pass", found=repr(step), hint=hint)
            check_options(step)
        self.passes = tuple(inner for step in passes for inner in _expanded(step))
        self.verify = verify
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.progress = progress
        self.watch = watch

    def check_order(self, stage: Stage) -> Stage:
        """The stage that the passes lead to from `stage`. Raises PassError at the first that cannot run there."""
        for index, step in enumerate(self.passes):
            if stage not in step.takes:
                before = self.passes[index - 1].name if index else "the program given"
                raise PassError(
                    f"pass {index + 1}, {step.name}, cannot run at stage {stage}",
                    expected=f"stage {' or '.join(sorted(map(str, step.takes)))}",
                    found=f"{stage}, left by {before}",
                    hint="change the order of the passes",
                )
            stage = step.gives or stage
        return stage

    def run(self, program: Program) -> PipelineResult:
        """Run every pass; the program given stays as it was.

        Raises PassError where the order is wrong, a pass fails or breaks its promise, VerificationError where it leaves
        a program that breaks a rule. An error raised inside a pass begins with the pass's name.
        """
        expect_program(program)
        self.check_order(program.stage)
        checks = _Checks(program) if self.verify else None
        rows = [_row("given", "", False, program, 0.0)]
        self._tell(rows[0], program)
        store = None if self.checkpoint is None else Checkpoints(self.checkpoint, program, self.passes)
        done: list[ReportRow] = []
        if store is not None:
            program, done = store.resume(program)
            rows += done
        with self._progress() as listener, listening(listener):
            for index, step in enumerate(self.passes[len(done) :], start=len(done)):
                program, row = self._step(step, program, checks)
                rows.append(row)
                if store is not None:
                    store.save(index, step.name, program, row)
                self._tell(row, program)
        return PipelineResult(program, Report(tuple(rows)))

    def _tell(self, row: ReportRow, program: Program) -> None:
        if self.watch is not None:
            self.watch(row, program)

    def _progress(self) -> AbstractContextManager[Listener | None]:
        return nullcontext() if self.progress is False else progress_bar(always=self.progress is True)

    def _step(self, step: Pass, before: Program, checks: _Checks | None) -> tuple[Program, ReportRow]:
        started = time.perf_counter()
        versions = {name: tensor._version for name, tensor in before.tensors().items()}
        try:
            result = finished(step, step.run(before.copy()))
        except TersorError as error:
            error.within(f"pass {step.name}")
            raise
        except torch.OutOfMemoryError as error:
            raise PassError(
                f"pass {step.name}: the GPU has no memory left",
                found=str(error).splitlines()[0],
                hint="smaller batches, or program.to('cpu')",
            ) from error
        except Exception as error:  # a pass is somebody's code and may raise anything
            raise PassError(f"pass {step.name} failed: {type(error).__name__}: {error}") from error
        seconds = time.perf_counter() - started
        _refuse_writes(step, before, versions)
        found = None if checks is None else checks.after(step, before, result.program, result.modified)
        row = _row(step.name, str(step.promise), result.modified, result.program, seconds, found, result.notes)
        return result.program, replace(row, options=step.options())


class _Checks:
    """The outputs of the program given and of the one before the pass, on the example inputs."""

    def __init__(self, program: Program) -> None:
        self.inputs = example_of(program)
        verify(program)
        self.given = self.previous = _outputs(program, self.inputs)
        self.first = self.at = program

    def after(self, step: Pass, before: Program, after: Program, modified: bool) -> tuple[Difference, Difference]:
        """Verify, compare, judge by the promise; returns the difference to the outputs before, and to the first."""
        changed = changed_nodes(before, after)
        if not modified and (changed or _tensors_changed(before, after)):
            raise PassError(
                f"pass {step.name} changed the program and says that it did not",
                node=changed[0] if changed else None,
                hint="return PassResult(program, modified=True)",
            )
        try:
            verify(after, shapes=changed)
        except VerificationError as error:
            error.within(f"after pass {step.name}")
            raise
        if before.signature.inputs != after.signature.inputs:
            self._narrow(before, after)
        elif before is not self.at:
            self.previous = _outputs(before, self.inputs)
        outputs = _outputs(after, self.inputs) if modified else self.previous
        found = self._judged(step, before, after, outputs)
        self.previous, self.at = outputs, after
        return found, difference(self.given, outputs)

    def _narrow(self, before: Program, after: Program) -> None:
        """Go on with inputs that a program takes whose sizes were bound; those before it take them too."""
        self.inputs = example_of(after)
        self.given, self.previous = _outputs(self.first, self.inputs), _outputs(before, self.inputs)

    def _judged(self, step: Pass, before: Program, after: Program, outputs: tuple[Tensor, ...]) -> Difference:
        mismatch = shape_mismatch(after.signature.output_names, self.previous, outputs)
        if mismatch is not None:
            raise _broken(step, before, after, self.inputs, "outputs of the same number, shapes and dtypes", mismatch)
        found = difference(self.previous, outputs)
        if found.new_nonfinite:
            raise _broken(step, before, after, self.inputs, "values that stay finite", str(found))
        if step.promise is Promise.EXACT and not within_rounding(self.previous, outputs, coarsest(before)):
            raise _broken(step, before, after, self.inputs, "the outputs before the pass, up to rounding", str(found))
        return found


def _broken(
    step: Pass, before: Program, after: Program, inputs: Sequence[Tensor], expected: str, found: str
) -> PassError:
    node = first_difference(_inference(before), _inference(after), inputs)
    new = [n.name for n in node.all_input_nodes if n.meta.get(REPLACES, n.name) != n.name] if node else []
    reads = f"; it reads {', '.join(new)}, which are new" if new else ""
    named = f"the node named is the first that differs{reads}"
    hints = [named if node else "was a tensor written into? replace it: program.set_tensor(name, new_value)"]
    if step.promise is Promise.EXACT:
        hints.append("a pass that means to change numbers says so: promise = Promise.APPROXIMATE")
    return PassError(
        f"pass {step.name} broke its promise ({step.promise}): the outputs changed",
        node=node,
        expected=expected,
        found=found,
        hint="; ".join(hints),
    )


def changed_nodes(before: Program, after: Program) -> list[fx.Node]:
    """The nodes of `after` whose shape may be another than in `before`, which was verified.

    They are new, or differ from the node of their name in what they call, read, or have recorded as their shape.
    """
    old = {node.name: node for node in before.graph.nodes}
    resized = _resized_tensors(before, after)
    return [
        node
        for node in after.graph.nodes
        if node.name not in old
        or not _same_call(old[node.name], node)
        or (node.op == "get_attr" and node.target in resized)
    ]


def _same_call(old: fx.Node, new: fx.Node) -> bool:
    if old.op != new.op or old.target != new.target or old.meta.get(KEY) is not new.meta.get(KEY):
        return False
    if str(old.args) != str(new.args) or str(old.kwargs) != str(new.kwargs):
        return False
    pairs = zip(old.all_input_nodes, new.all_input_nodes, strict=True)
    return all(left.meta.get(KEY) is right.meta.get(KEY) for left, right in pairs)


def _resized_tensors(before: Program, after: Program) -> set[str]:
    """The names of tensors that have another shape or dtype than they had."""
    old = before.tensors()
    return {
        name
        for name, tensor in after.tensors().items()
        if name not in old or old[name].shape != tensor.shape or old[name].dtype != tensor.dtype
    }


def _tensors_changed(before: Program, after: Program) -> bool:
    old, new = before.tensors(), after.tensors()
    return old.keys() != new.keys() or any(old[name] is not tensor for name, tensor in new.items())


def _outputs(program: Program, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    with torch.no_grad(), full_float32(program.device):
        return _inference(program).run(inputs)


def _inference(program: Program) -> Program:
    """The program as it runs in inference; a copy where it is in training, which would write statistics."""
    return program.copy().eval() if program.module.training else program


def _refuse_writes(step: Pass, before: Program, versions: dict[str, int]) -> None:
    for name, tensor in before.tensors().items():
        if tensor._version != versions[name]:
            raise PassError(
                f"pass {step.name} wrote into {name!r}, which the program given shares",
                hint="replace it: program.set_tensor(name, new_value)",
            )


def _as_sequence(passes: Sequence[Pass]) -> Sequence[Pass]:
    if isinstance(passes, Pass):
        raise PassError(
            "passes are given as a list", found=repr(passes), hint=f"PassManager([{type(passes).__name__}(...)])"
        )
    return passes


def _expanded(step: Pass) -> tuple[Pass, ...]:
    inner = step.expand()
    return inner if inner == (step,) else tuple(leaf for child in inner for leaf in _expanded(child))


def _row(
    name: str,
    promise: str,
    modified: bool,
    program: Program,
    seconds: float,
    found: tuple[Difference, Difference] | None = None,
    notes: tuple[str, ...] = (),
) -> ReportRow:
    cost = program.cost()
    step, total = (found[0].sqnr, found[1].sqnr) if found else (None, None)
    return ReportRow(
        name,
        promise,
        modified,
        len(program.graph.nodes),
        cost.macs,
        cost.parameter_bytes,
        seconds,
        step,
        total,
        notes,
        cost.parameters,
    )
