"""One call from a model and a budget to an artifact."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tersor.backends.base import Artifact, Backend
from tersor.frontends.dynamic import Dynamic
from tersor.frontends.torch_export import trace
from tersor.ir.errors import RecipeError, TersorError, TrainingError
from tersor.ir.program import Program
from tersor.ir.whole_file import write_text
from tersor.passes.base import Pass
from tersor.passes.manager import PassManager
from tersor.passes.training.batches import require_again, split
from tersor.passes.training.options import Better, Training
from tersor.passes.training.program_task import ProgramTask, Settings
from tersor.passes.training.randomness import Stream

from ..inputs import can_synthesize, example_batch, from_training, synthesized
from ..lowering import lower, resolve
from ..recipe_data import LOSSES, METRICS, by_name
from ..recipe_text import recipe_text
from ..recording import Recorder
from ..run_record import Metric, Point, RunRecord
from .attempts import TRIALS, Attempt, Attempts
from .budget import Budget
from .measurement import Gauge, Measured
from .plan import Ingredients, Plan
from .planner import Planner

_BATCHES = 64
_NAMED = 5
RECIPE, PROGRAM = "recipe.yaml", "program.tersor"

Judge = Callable[..., Any] | str
"""Of a program; or, with validation data, of outputs and targets, or the name of such one: `accuracy`."""


@dataclass(frozen=True)
class Given:
    """What `compress` was called with, checked."""

    program: Program
    backend: Backend
    calibration: list[Any] | None
    data: Iterable[Any] | None
    loss: Callable[..., Tensor] | None
    evaluate: Callable[[Program], float] | None
    judge: Metric | None
    names: Mapping[str, str]


def compress(
    model: nn.Module | Program,
    args: Sequence[Any] | Tensor = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    target: str | Backend = "onnxruntime",
    calibration: Iterable[Any] | None = None,
    data: Iterable[Any] | None = None,
    loss: Callable[..., Tensor] | str | None = None,
    metric: Judge | None = None,
    validation: Iterable[Any] | None = None,
    better: Better = Better.HIGHER,
    budget: Budget | None = None,
    training: Training | None = None,
    student: nn.Module | Program | None = None,
    passes: Sequence[Pass] | None = None,
    dynamic: Dynamic | None = None,
    trials: int = TRIALS,
    checkpoint: str | Path | None = None,
    out: str | Path | None = None,
) -> Artifact:
    """Trace a model, compress it within a budget, lower it, and leave the recipe that does it again.

    model, args, kwargs, dynamic: as for `trace`; a Program is taken as it is. target: as for `lower`.
    calibration: batches, each what the model is called with. None: the first batches of `data`; without any, inputs
        made from the model's batch norms, or its example alone, with a warning.
    data, loss: what to train on, as for `Finetune`; a loss by name: `cross_entropy`, `mse`. Without a loss the model
        itself is all that is learned from. Without data there is no training but what needs none (`DistillDataFree`).
    metric: what the floor is about, on data that is not trained on: `metric(program)`; or, with `validation`,
        `metric(outputs, *targets)`, or `accuracy`. better: whether it is to grow.
    budget: see `Budget`. None quantizes, and trains through the grids where there is data.
    training: how long each tuning trains. student: a smaller model to train to do as this one, and to compress instead.
    passes: what to run instead of a search.
    trials: how many allotments of channels are judged untrained for each kind of plan, where nothing but a floor is
        given and nothing trains: each takes one evaluation of the metric.
    checkpoint: a folder; a run that is started again there with the same arguments goes on where it stopped.
    out: a folder for the artifact, `program.tersor`, `recipe.yaml` and `run.json`; they are written at the end.

    `artifact.explanation` says what was chosen and why, and what else was tried; so do the recipe's comments.

    Raises BudgetError where the budget cannot be met; TraceError, CalibrationError, TrainingError, PassError or
    LoweringError.
    """
    if trials < 1:
        raise RecipeError("trials is a count", expected="at least 1", found=trials)
    backend = resolve(target)
    program = model if isinstance(model, Program) else trace(model, args, kwargs, dynamic)
    given = _checked(program, backend, calibration, data, loss, metric, validation, better, budget)
    if passes is not None:
        return _replayed(given, passes, checkpoint, out)
    ingredients, kind = _ingredients(given, training or Training(), student, args, kwargs, dynamic)
    start = program if student is None else _student(student, args, kwargs, dynamic, given)
    attempts = Attempts(
        start,
        ingredients,
        Gauge(backend, given.evaluate, timed=_is_timed(budget)),
        given.judge,
        None if checkpoint is None else Path(checkpoint),
        trials,
    )
    baseline, notes = _baseline(program, attempts, budget)
    planner = Planner(attempts, budget or Budget(), baseline, better)
    chosen = planner.choose()
    notes = [*notes, *planner.notes]
    return _written(given, attempts, chosen, baseline, budget, kind, notes, out)


def _is_timed(budget: Budget | None) -> bool:
    """Whether plans are judged by latency: where it is limited, or where nothing but a floor is given.

    Else what is chosen is measured once, in the end; without a budget nothing is.
    """
    if budget is None:
        return False
    return budget.latency is not None or not any(budget.costs())


# -- what is given ---------------------------------------------------------------------------------------------------


def _checked(
    program: Program,
    backend: Backend,
    calibration: Iterable[Any] | None,
    data: Iterable[Any] | None,
    loss: Callable[..., Tensor] | str | None,
    metric: Judge | None,
    validation: Iterable[Any] | None,
    better: Better,
    budget: Budget | None,
) -> Given:
    """What can be known to be wrong before anything long begins. Raises RecipeError, TrainingError."""
    if budget is not None and budget.floor is not None and metric is None:
        raise RecipeError("a floor needs a metric to measure it", hint="metric=, on data that is not trained on")
    if loss is not None and data is None:
        raise TrainingError("a loss needs data to train on", hint="data=batches of (inputs, targets)")
    if isinstance(metric, str) and validation is None:
        raise RecipeError(f"metric {metric!r} needs data", hint="validation=batches that are not trained on")
    found = by_name("loss", loss, LOSSES)
    judge = by_name("metric", metric, METRICS)
    if data is not None:
        require_again(data)
        _probe(program, data, found)
    name = metric if isinstance(metric, str) else getattr(metric, "__name__", "metric")
    floor = None if budget is None or budget.floor is None else budget.limit("floor")
    judged = None if metric is None else Metric(name, better, None if floor is None or floor.is_share else floor.amount)
    names = {key: value for key, value in (("loss", loss), ("metric", metric)) if isinstance(value, str)}
    batches = None if calibration is None else list(islice(calibration, _BATCHES))
    return Given(program, backend, batches, data, found, evaluator(judge, validation), judged, names)


def _probe(program: Program, data: Iterable[Any], loss: Callable[..., Tensor] | None) -> None:
    """Run one batch through the model and the loss. Raises TrainingError with what went wrong."""
    with Stream.seeded(0).used():
        batch = next(iter(data), None)
    if batch is None:
        raise TrainingError("training data is empty", expected="at least one batch", found="none")
    parts = split(program, batch)
    outputs = program.unflatten(program.run(parts.inputs(program)))
    if loss is None:
        return
    try:
        value: Any = loss(outputs, *parts.targets, **parts.named_targets)
    except TersorError:
        raise
    except Exception as error:  # a loss is somebody's code and may raise anything
        raise TrainingError(
            f"the loss failed on the first batch: {type(error).__name__}: {error}",
            expected="loss(outputs, *targets)",
            found=f"{len(parts.targets) + len(parts.named_targets)} targets beside the inputs",
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise TrainingError("the loss is no tensor of one value", found=type(value).__name__)
    if not bool(value.isfinite()):
        raise TrainingError(
            "the loss of the first batch is not finite",
            expected="a finite number before anything is trained",
            found=value.item(),
            hint="look at the loss, and for NaN in the data",
        )


def evaluator(metric: Any, validation: Iterable[Any] | None) -> Callable[[Program], float] | None:
    """A metric of programs, from one of programs, or of outputs and targets on validation data."""
    metric = by_name("metric", metric, METRICS)
    if metric is None or validation is None:
        found: Callable[[Program], float] | None = metric
        return found
    require_again(validation, "validation data")

    def evaluate(program: Program) -> float:
        task = ProgramTask(program, Settings(metric=metric, validation=validation))
        value = task.evaluate()
        assert value is not None
        return float(value)

    return evaluate


def _ingredients(
    given: Given,
    training: Training,
    student: object,
    args: Any,
    kwargs: Any,
    dynamic: Any,
) -> tuple[Ingredients, str | None]:
    """What plans are made with, and where calibration data came from if it has to be made again."""
    program, kind, calibration = given.program, None, given.calibration
    dreams = calibration is None and given.data is None and can_synthesize(program)
    if calibration is None and given.data is not None:
        calibration = from_training(program, given.data)
    elif calibration is None and dreams:
        calibration, kind = synthesized(program), "synthesized"
    elif calibration is None:
        warnings.warn("calibrating on the example alone: give calibration=batches of real data", stacklevel=3)
        calibration, kind = [example_batch(program)], "example"
    if student is not None and given.data is None:
        raise TrainingError("a student needs data to be taught on", hint="data=batches")
    found = Ingredients(
        given.backend.preferences,
        program,
        calibration,
        given.data,
        given.loss,
        training,
        synthetic=kind is not None,
        dreams=dreams,
        student=student is not None,
    )
    return found, kind


def _student(student: nn.Module | Program, args: Any, kwargs: Any, dynamic: Any, given: Given) -> Program:
    found = student if isinstance(student, Program) else trace(student, args, kwargs, dynamic)
    if found.signature.inputs != given.program.signature.inputs:
        raise TrainingError(
            "student and model take other inputs",
            expected=", ".join(map(str, given.program.signature.inputs)),
            found=", ".join(map(str, found.signature.inputs)),
        )
    return found


# -- where it begins -------------------------------------------------------------------------------------------------


def _baseline(program: Program, attempts: Attempts, budget: Budget | None) -> tuple[Measured, list[str]]:
    """What the model given costs on the target and is worth, in float where the target takes that."""
    gauge, notes = attempts.gauge, list[str]()
    cost = program.cost()
    metric = gauge.metric(program)
    floats = attempts.ingredients.likes.floats and gauge.takes(program)
    if budget is None or budget.latency is None:
        found = Measured(cost.parameter_bytes, cost.macs, cost.parameters)
    elif floats:
        found = gauge.costs(program)
    else:
        plain = Attempts(program, attempts.ingredients, gauge).run(Plan(), score=False)
        if plain.measured is None:
            raise TersorError(f"target {gauge.target.name!r} cannot run the model as it is", found=plain.error)
        found = dataclasses.replace(
            plain.measured, bytes=cost.parameter_bytes, macs=cost.macs, parameters=cost.parameters
        )
        notes.append("shares of latency are of the model quantized: the target takes no float model")
    return dataclasses.replace(found, metric=metric), notes


# -- what is left ----------------------------------------------------------------------------------------------------


def _replayed(given: Given, passes: Sequence[Pass], checkpoint: str | Path | None, out: Any) -> Artifact:
    recorder = Recorder(evaluate=given.evaluate, metric=given.judge)
    result = PassManager(passes, checkpoint=checkpoint, watch=recorder).run(given.program)
    artifact = lower(result.program, given.backend, out)
    try:
        text = recipe_text(passes, target=given.backend.name, **given.names)
    except RecipeError:
        text = ""
    record = recorder.record(result, given.program, artifact, recipe=text)
    _save(artifact, result.program, text, record, out)
    return artifact


def _written(
    given: Given,
    attempts: Attempts,
    chosen: Attempt,
    baseline: Measured,
    budget: Budget | None,
    kind: str | None,
    notes: Sequence[str],
    out: str | Path | None,
) -> Artifact:
    """Lower what was chosen, and write what says how it came about, the record last."""
    assert chosen.result is not None
    assert chosen.recorder is not None
    program = chosen.result.program
    artifact = lower(program, given.backend, out)
    comments = _comments(attempts, chosen, baseline, budget, notes)
    artifact.explanation = "\n".join(comments)
    entries = {**given.names, "calibration": kind}
    text = recipe_text(chosen.passes, comments=comments, target=given.backend.name, **entries)
    points = (_given_point(baseline), *attempts.points())
    record = chosen.recorder.record(
        chosen.result,
        attempts.start,
        artifact,
        recipe=text,
        settings={"target": given.backend.name, "budget": str(budget or Budget())},
        points=points,
    )
    record = dataclasses.replace(
        record, notes=(*notes, *record.notes), metric=_judged(given, budget, baseline), steps=_timed(record, chosen)
    )
    _save(artifact, program, text, record, out)
    return artifact


def _judged(given: Given, budget: Budget | None, baseline: Measured) -> Metric | None:
    limit = None if budget is None else budget.limit("floor")
    if given.judge is None or limit is None:
        return given.judge
    return dataclasses.replace(given.judge, floor=limit.within(baseline.metric or 0.0))


def _timed(record: RunRecord, chosen: Attempt) -> tuple[Any, ...]:
    """The steps, the last with the latency and the metric of what was chosen."""
    if not record.steps or chosen.measured is None:
        return record.steps
    last = record.steps[-1]
    metric = chosen.metric if last.metric is None else last.metric
    return (*record.steps[:-1], dataclasses.replace(last, latency=chosen.measured.timing, metric=metric))


def _given_point(baseline: Measured) -> Point:
    return Point("as given", baseline.costs(), baseline.metric, reason="where it begins", clock=baseline.clock)


def _comments(
    attempts: Attempts, chosen: Attempt, baseline: Measured, budget: Budget | None, notes: Sequence[str]
) -> list[str]:
    """What the recipe says of itself: the choice, what it came to, and what else was tried."""
    likes = attempts.ingredients.likes
    found = chosen.measured
    assert found is not None
    lines = [f"Found by tersor.compress for {attempts.gauge.target.name}; budget: {budget or Budget()}."]
    lines.append(f"Chosen: {chosen.plan.words(likes)}: {chosen.reason}.")
    lines.append(f"Given:  {_amounts(baseline)}")
    lines.append(f"Result: {_amounts(found)}")
    if found.source:
        spread = f"; the middle half of the calls lie {found.spread:.2g} {found.unit} apart" if found.spread else ""
        lines.append(f"Latency: {found.clock}, {found.source}{spread}.")
    lines += _dearest(attempts)
    others = [attempt for attempt in attempts.tried if not attempt.chosen]
    for attempt in others:
        why = attempt.error.splitlines()[0] if attempt.error else attempt.reason
        lines.append(f"Tried:  {attempt.plan.words(likes)}{', tuned' if attempt.plan.tuned else ''}: {why}")
    lines += [f"Note:   {note}" for note in notes]
    lines.append("Replay: tersor.compress(model, args, target=..., passes=tersor.load_recipe(this, data=..., ...)).")
    return lines


def _dearest(attempts: Attempts) -> list[str]:
    """The layers that take most of the time, as far as that was looked at."""
    whole = next((attempt.measured for attempt in attempts.tried if attempt.plan == Plan()), None)
    if whole is None or not whole.layers or not whole.latency:
        return []
    total = whole.latency if whole.at_once else sum(whole.layers.values())
    dearest = sorted(whole.layers.items(), key=lambda layer: -layer[1])[:_NAMED]
    of = "of the slowest, all at once" if whole.at_once else "of the latency, quantized and uncut"
    return [f"Layers: {', '.join(f'{name} {cost / total:.0%}' for name, cost in dearest)} {of}."]


def _amounts(measured: Measured) -> str:
    parts = [f"{measured.bytes:,} bytes", f"{measured.macs:,} MACs"]
    if measured.latency is not None:
        parts.append(f"{measured.latency:.4g} {measured.unit}")
    if measured.metric is not None:
        parts.append(f"metric {measured.metric:.4g}")
    return ", ".join(parts)


def _save(artifact: Artifact, program: Program, text: str, record: RunRecord, out: str | Path | None) -> None:
    """Beside the artifact, each whole or not at all."""
    folder = artifact.path if out is None else Path(out)
    program.save(folder / PROGRAM)
    if text:
        write_text(folder / RECIPE, text)
    record.save(folder)
