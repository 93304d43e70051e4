"""The optimizer loop: the only one in the project. Everything that learns is a `Task` that it runs."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tersor.ir.errors import TrainingError

from ..console import progress_bar
from ..processes import rank, summed, world
from ..progress import heard, listening, tell
from .accelerated import accelerator
from .averaging import Average, copied, write
from .batches import moved, rows
from .feed import Feed
from .options import Better, Training
from .randomness import Stream, preserved
from .resuming import Keeper
from .schedules import rate
from .sharding import check_sharding, gather, shard
from .task import Task


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    loss: the mean over the last epoch, or over what was trained of it; metric: of the state that was kept, None without
    validation; best_step: when that state was reached; resumed_at: the step that a checkpoint gave, 0 without one.
    """

    steps: int
    epochs: int
    loss: float
    metric: float | None
    best_step: int
    stopped_early: bool
    resumed_at: int
    seconds: float

    def notes(self, metric_name: str = "metric") -> tuple[str, ...]:
        """What a report says of it."""
        kept = "" if self.metric is None else f", {metric_name} {self.metric:.4g} at step {self.best_step}"
        early = ", stopped early" if self.stopped_early else ""
        resumed = f", resumed at step {self.resumed_at}" if self.resumed_at else ""
        return (f"{self.steps} steps, loss {self.loss:.4g}{kept}{early}{resumed}",)


def fit(task: Task, batches: Iterable[Any], options: Training, better: Better = Better.HIGHER) -> Outcome:
    """Train a task on batches. The task holds the result; random generators of the process stay as they were.

    Raises TrainingError where data is empty, can be read once only or does not fit, where a checkpoint is of another
    run, or where a loss or gradient is not finite: with the step and the first tensor that is not.
    """
    return Loop(task, batches, options, better).run()


class _Step(nn.Module):
    """The loss as a module's output, with what is trained as its parameters: the form that DDP and FSDP wrap."""

    def __init__(self, task: Task, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.task = task
        self.trained = nn.ParameterList(parameters)

    def forward(self, batch: Any, share: float) -> Tensor:
        """The mean loss of a batch, float[]."""
        return self.task.loss(batch, share)


class Loop:
    """One run: optimizer, data, clock, and the state that is best so far."""

    def __init__(self, task: Task, batches: Iterable[Any], options: Training, better: Better) -> None:
        self.task, self.options, self.better = task, options, better
        self.accelerator = accelerator(options.precision, task.stays_on)
        self.world = world()
        self.share_out = 1 if options.own_batches else self.world
        self.feed = Feed(batches, options.accumulate * self.share_out, Stream.seeded(options.seed))
        self.steps = options.steps or options.epochs * self.feed.steps_per_epoch()
        self.step = self.best_step = self.without_better = self.resumed_at = 0
        self.best: float | None = None
        self.best_state: dict[str, Tensor] | None = None
        self.metric: float | None = None
        self.losses: list[float] = []
        self.mean_loss = math.nan
        self.stopped_early = False
        task.to(self.accelerator.device)
        task.begin(self.steps)
        self.average = None if options.average is None else Average(options.average, task.state())
        self.sharded = options.shard and self.world > 1
        if self.sharded:
            check_sharding(task, options)
        self.build()

    # -- the run ---------------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Train to the end, or until it stops getting better."""
        started = time.perf_counter()
        with ExitStack() as stack:
            stack.enter_context(preserved())
            stack.enter_context(self._heard())
            Stream.seeded(self.options.seed + 1 + rank()).put()
            keeper = Keeper(self) if self.options.checkpoint is not None else None
            self.resumed_at = keeper.resume() if keeper is not None else 0
            self._until_done(keeper, started)
            self._end()
        seconds = time.perf_counter() - started
        return Outcome(
            self.step, self.feed.epoch, self.mean_loss, self.best if self._keeps_best else self.metric,
            self.best_step if self._keeps_best else self.step, self.stopped_early, self.resumed_at, seconds,
        )  # fmt: skip

    def _until_done(self, keeper: Keeper | None, started: float) -> None:
        while self.step < self.steps and not self.stopped_early:
            if self.task.advance(self.step, self.steps):
                self._changed()
            group = self.feed.next()
            self.losses.append(self._update(group.batches))
            self.step += 1
            done = self.step == self.steps
            if done or _due(self.step, self.options.evaluate_every, group.ends):
                self._evaluate()
            if group.ends or done:
                self.mean_loss, self.losses = sum(self.losses) / len(self.losses), []
            if keeper is not None and (done or _due(self.step, self.options.checkpoint_every, group.ends)):
                keeper.save()
            self._tell(started)

    def _changed(self) -> None:
        """The task is another program now: what was best before is no state of this one."""
        self.build()
        self.best, self.best_state, self.without_better = None, None, 0
        if self.average is not None:
            self.average.fit_to(self.task.state())

    def _end(self) -> None:
        if not math.isfinite(self.mean_loss) and self.losses:
            self.mean_loss = sum(self.losses) / len(self.losses)
        if self._keeps_best and self.best_state is not None:
            write(self.task.state(), self.best_state)
        elif self.average is not None:
            write(self.task.state(), self.average.values)

    @property
    def _keeps_best(self) -> bool:
        return self.options.keep_best and self.best is not None and self.metric is not None

    # -- one step --------------------------------------------------------------------------------------------------

    def build(self) -> None:
        """Make the optimizer for the task's parameters; what it knew of a parameter of that name and shape is kept."""
        known = self.optimizer_states() if hasattr(self, "optimizer") else {}
        self.names: list[str] = []
        groups: list[dict[str, Any]] = []
        self.speeds: list[float] = []
        for group in self.task.groups():
            for decayed in (True, False):
                chosen = {n: p for n, p in group.parameters.items() if (group.decay and p.dim() > 1) is decayed}
                if chosen:
                    decay = self.options.weight_decay if decayed else 0.0
                    rate_ = self.options.learning_rate * group.speed
                    groups.append({"params": list(chosen.values()), "lr": rate_, "weight_decay": decay})
                    self.names += chosen
                    self.speeds.append(group.speed)
        if not groups:
            raise TrainingError("there is nothing to train", expected="at least one parameter that is not frozen")
        self.parameters: list[nn.Parameter] = [parameter for group in groups for parameter in group["params"]]
        for parameter in self.parameters:
            parameter.grad = None
        step = _Step(self.task, self.parameters)
        if self.sharded:
            self._shard(step, groups)
            self.model, self.optimizer = step, self.accelerator.prepare(self.options.build(groups))
        else:
            self.model, self.optimizer = self.accelerator.prepare(step, self.options.build(groups))
        self.load_optimizer_states(known)

    def _shard(self, step: _Step, groups: list[dict[str, Any]]) -> None:
        """Let the groups hold this process's parts of their parameters."""
        step.body = self.task.body()
        shard(step, self.accelerator.device)
        parts = dict(zip(map(id, self.parameters), step.trained, strict=True))
        for group in groups:
            group["params"] = [parts[id(parameter)] for parameter in group["params"]]
        self.parameters = list(step.trained)

    def optimizer_states(self) -> dict[str, dict[str, Any]]:
        """What the optimizer remembers of each parameter, by name."""
        pairs = zip(self.names, self.parameters, strict=True)
        return {name: self.optimizer.state[p] for name, p in pairs if p in self.optimizer.state}

    def load_optimizer_states(self, known: dict[str, dict[str, Any]]) -> None:
        """Let the optimizer remember this, where the shapes fit."""
        for name, parameter in zip(self.names, self.parameters, strict=True):
            state = known.get(name, {})
            sized = [value for value in state.values() if isinstance(value, Tensor) and value.dim()]
            if state and all(value.shape == parameter.shape for value in sized):
                self.optimizer.state[parameter] = state

    def _update(self, batches: list[Any]) -> float:
        """One update from the batches of a step; returns their mean loss over all processes."""
        share = self.step / self.steps
        factor = rate(self.options, self.step, self.steps)
        for group, speed in zip(self.optimizer.param_groups, self.speeds, strict=True):
            group["lr"] = self.options.learning_rate * speed * factor
        mine = self._mine(batches)
        total = torch.zeros(())
        for index, (batch, weight) in enumerate(mine):
            last = index == len(mine) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                total += self._backward(moved(batch, self.accelerator.device), share, weight)
        self._check_gradients()
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            self.task.constrain()
        if self.average is not None:
            self.average.update(self.task.state(), self.step)
        return summed(total).item() / self.world

    def _mine(self, batches: list[Any]) -> list[tuple[Any, float]]:
        """This process's part of a step, with the weight of each in the mean over all processes.

        All have the same number, since they wait for each other; one that has too few repeats a batch with weight 0.
        """
        if self.options.own_batches:
            return [(batch, 1 / len(batches)) for batch in batches]
        weight = self.world / len(batches)
        mine = [(batch, weight) for batch in batches[rank() :: self.world]]
        missing = -(-len(batches) // self.world) - len(mine)
        return mine + [(batches[0], 0.0)] * missing

    def _backward(self, batch: Any, share: float, weight: float) -> float:
        try:
            return self._value(batch, share, weight)
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"step {self.step}: the GPU has no memory left",
                expected=f"room for a batch of {rows(batch)}",
                found=str(error).splitlines()[0],
                hint="smaller batches with accumulate=n, precision=Precision.BFLOAT16, or shard=True on several GPUs",
            ) from error

    def _value(self, batch: Any, share: float, weight: float) -> float:
        with self.accelerator.autocast():
            loss = self.model(batch, share)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            found = f"{tuple(loss.shape)}, gradient: {loss.requires_grad}" if isinstance(loss, Tensor) else repr(loss)
            hint = "a loss returns one number as a tensor, computed from the outputs"
            raise TrainingError("the loss is no loss", expected="a tensor of one value", found=found, hint=hint)
        value: float = loss.item()
        if not math.isfinite(value):
            self._refuse(batch, share, f"loss {value}")
        self.accelerator.backward(loss.reshape(()) * weight)
        return value * weight

    def _check_gradients(self) -> None:
        if self.options.clip_norm is not None:
            norm = self.accelerator.clip_grad_norm_(self.parameters, self.options.clip_norm)
        elif self.sharded:
            norm = self.accelerator.clip_grad_norm_(self.parameters, math.inf)
        else:
            norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        scaler = self.accelerator.scaler
        if scaler is None and not math.isfinite(float(norm)):
            pairs = zip(self.names, self.parameters, strict=True)
            bad = [name for name, p in pairs if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
            raise TrainingError(
                f"step {self.step}: a gradient is not finite",
                expected="finite gradients",
                found=f"the gradient of {bad[0] if bad else 'all parameters together'}",
                hint="a lower learning_rate, or clip_norm",
            )

    def _refuse(self, batch: Any, share: float, found: str) -> None:
        error = self.task.explain(batch, share)
        if error is not None:
            error.within(f"step {self.step}: {found}")
            raise error
        hint = "a lower learning_rate, or clip_norm; the last checkpoint, if any, is from before"
        raise TrainingError(f"step {self.step}: the loss is not finite", expected="a number", found=found, hint=hint)

    # -- evaluating and telling ------------------------------------------------------------------------------------

    def _evaluate(self) -> None:
        """Evaluate the weights, or their mean; remember the best."""
        state = self.task.state()
        if self.sharded:
            gather(state, self.names, self.parameters)
        with self.average.swapped(state) if self.average is not None else nullcontext(), torch.no_grad(), preserved():
            self.metric = self.task.evaluate()
            value, better = self.metric, self.better
            if value is None:
                value, better = sum(self.losses) / max(1, len(self.losses)), Better.LOWER
            if self.best is None or _is_better(value, self.best, better):
                self.best, self.best_step, self.without_better = value, self.step, 0
                keeps = self.options.keep_best and self.metric is not None
                self.best_state = copied(state) if keeps else None
            else:
                self.without_better += 1
        patience = self.options.patience
        self.stopped_early = patience is not None and self.without_better >= patience and self.step < self.steps

    def _tell(self, started: float) -> None:
        if rank() or not heard():
            return
        loss = self.losses[-1] if self.losses else self.mean_loss
        metric = "" if self.metric is None else f"metric {self.metric:.4g}  "
        speed = (self.step - self.resumed_at) / max(time.perf_counter() - started, 1e-9)
        tell(self.task.what, self.step, self.steps, f"loss {loss:.4g}  {metric}{speed:.3g} steps/s")

    def _heard(self) -> ExitStack:
        """A bar, where one is wanted and nobody listens yet."""
        stack = ExitStack()
        if not heard() and not rank() and self.options.progress is not False:
            stack.enter_context(listening(stack.enter_context(progress_bar(always=self.options.progress is True))))
        return stack


def _due(step: int, every: int | None, epoch_ends: bool) -> bool:
    return epoch_ends if every is None else step % every == 0


def _is_better(value: float, best: float, better: Better) -> bool:
    return value > best if better is Better.HIGHER else value < best
