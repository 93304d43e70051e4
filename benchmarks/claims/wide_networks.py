"""The networks of claim 8: one teacher made small by each method alone, by pairs of them, and by all.

Each program is kept on disk, so that latencies can be measured again without training.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

import tersor as ts
from examples.digits import DigitsNet
from tersor.passes.training.reinitialize import reinitialized

from ..trained import Trained
from ..trained.cached import cached, fingerprint
from ..trained.digits_wide import digits_wide, precision

STEPS = 3


@dataclass(frozen=True)
class Sizes:
    """How large the teacher is, how much of its multiply-accumulates is to be left, and how long everything trains.

    width: of the teacher; student: of one that is drawn smaller. rows: of training images; None for all.
    recover: epochs after each cut but the last; tune: after the last. quantized: epochs of training quantized.
    floor: of the one call, on training images.
    """

    width: int = 128
    student: int = 32
    share: float = 0.05
    rows: int | None = None
    recover: int = 3
    tune: int = 10
    quantized: int = 5
    multiple: int = 16
    floor: str = "0.98x"


FULL = Sizes()
QUICK = Sizes(width=16, student=8, share=0.3, rows=64, recover=1, tune=1, quantized=1, multiple=1, floor="0.1x")


@dataclass(frozen=True)
class Networks:
    """Programs of one seed, made when they are asked for."""

    seed: int
    sizes: Sizes

    @cached_property
    def teacher(self) -> Trained:
        return digits_wide(self.seed, self.sizes.width, rows=self.sizes.rows)

    def program(self, name: str) -> ts.Program:
        """One of `METHODS`, from disk where it was made before."""
        return cached(
            f"claim8-{name}", f"{self} {name} {fingerprint(self.teacher.program)}", lambda: METHODS[name](self)
        )

    def training(self, epochs: int, precise: bool = False) -> ts.Training:
        """Of every network but the teacher."""
        chosen = ts.Precision.FLOAT32 if precise else precision()
        return ts.Training(
            epochs=epochs, learning_rate=2e-3, weight_decay=0.01, warmup=0.1, seed=self.seed, precision=chosen,
            progress=False,
        )  # fmt: skip

    def learn(self, epochs: int, taught: bool) -> ts.Pass:
        """Training by labels, or by labels and the teacher."""
        given, training = self.teacher, self.training(epochs)
        if not taught:
            return ts.Finetune(given.train, given.loss, training=training)
        return ts.Distill(given.train, given.loss, ts.Distillation(given.program), training=training)

    def in_steps(self, taught: bool) -> ts.Program:
        """The teacher cut in steps, with training after each."""
        given = self.teacher
        images, labels = given.train.tensors
        scored = list(zip(images[:256].split(64), labels[:256].split(64), strict=True))
        share = ts.Macs(self.sizes.share ** (1 / STEPS))
        cut = ts.PruneChannels(
            share, ts.Taylor(scored, given.loss), ranking=ts.Ranking.LOCAL, multiple=self.sizes.multiple
        )
        epochs = [*[self.sizes.recover] * (STEPS - 1), self.sizes.tune]
        return run([step for each in epochs for step in (cut, self.learn(each, taught))], given.program)

    def drawn_small(self) -> ts.Program:
        """A student of fresh weights, as wide as `sizes.student`, and the teacher."""
        torch.manual_seed(100 + self.seed)
        images = self.teacher.train.tensors[0]
        student = ts.trace(DigitsNet(self.sizes.student).eval(), (images[:2],), dynamic={"x": {0: "batch"}})
        return run([self.learn(self._epochs(), True)], student)

    def plainly_small(self) -> ts.Program:
        """What pruning left, with fresh weights and labels alone, trained as long."""
        return run([self.learn(self._epochs(), False)], reinitialized(self.program("pruned-distilled"), self.seed))

    def rounded(self, name: str) -> ts.Program:
        """INT8 after training."""
        return run([ts.Quantize(ts.INT8, calibration=self.teacher.calibration())], self.program(name))

    def trained_quantized(self) -> ts.Program:
        """INT8 by training, taught by the teacher, of what was pruned and distilled."""
        given = self.teacher
        training = dataclasses.replace(self.training(self.sizes.quantized, precise=True), learning_rate=5e-4)
        step = ts.TrainQuantized(
            given.train, given.loss, ts.INT8, training=training, calibration=given.calibration(),
            distillation=ts.Distillation(given.program),
        )  # fmt: skip
        return run([step], self.program("pruned-distilled"))

    def in_one_call(self) -> ts.Program:
        """What `ts.compress` finds by itself within the same share of the multiply-accumulates."""
        given = self.teacher
        images, labels = given.train.tensors
        judged = list(zip(images[:512].split(64), labels[:512].split(64), strict=True))
        budget = ts.Budget(macs=f"{self.sizes.share}x", floor=self.sizes.floor)
        training = self.training(self.sizes.recover)
        with tempfile.TemporaryDirectory() as folder:
            ts.compress(
                given.program, data=given.train, loss=given.loss, validation=judged, metric=given.metric, budget=budget,
                training=training, calibration=given.calibration(), out=folder,
            )  # fmt: skip
            return ts.load(Path(folder) / "program.tersor")

    def _epochs(self) -> int:
        return self.sizes.recover * (STEPS - 1) + self.sizes.tune


def run(passes: list[ts.Pass], program: ts.Program) -> ts.Program:
    """The program after the passes."""
    return ts.PassManager(passes, progress=False).run(program).program


METHODS: dict[str, Callable[[Networks], ts.Program]] = {
    "teacher": lambda networks: networks.teacher.program,
    "quantized": lambda networks: networks.rounded("teacher"),
    "pruned": lambda networks: networks.in_steps(taught=False),
    "distilled": Networks.drawn_small,
    "pruned-quantized": lambda networks: networks.rounded("pruned"),
    "distilled-quantized": lambda networks: networks.rounded("distilled"),
    "pruned-distilled": lambda networks: networks.in_steps(taught=True),
    "all": Networks.trained_quantized,
    "one-call": Networks.in_one_call,
    "plain": Networks.plainly_small,
    "plain-quantized": lambda networks: networks.rounded("plain"),
}
"""How each network is made, in the order in which they are."""
