"""A small student taught by a larger network: soft labels and attention maps, and no label at all."""

from __future__ import annotations

import torch
from torch.nn import functional as F

import tersor as ts

from . import digits


def main() -> None:
    """Train a teacher; then a student on the labels of a few images, and one on what the teacher says of all."""
    data = digits.load()
    teacher = ts.trace(digits.train(data, epochs=4, width=16), (data.test_images[:2],), dynamic={"x": {0: "batch"}})
    few = ts.ShuffledBatches(data.train_images[:128], data.train_labels[:128], size=32)
    unlabelled = ts.ShuffledBatches(data.train_images, size=32)
    options = ts.Training(steps=150, learning_rate=0.01, warmup=0.2)

    wanted = ts.Distillation(teacher, attention=("blocks.1", "blocks.2"), attention_weight=0.5)
    for name, step in (
        ("128 labels", ts.Finetune(few, F.cross_entropy, training=options)),
        ("no labels, a teacher", ts.Distill(unlabelled, None, wanted, training=options)),
    ):
        torch.manual_seed(0)
        student = ts.trace(digits.DigitsNet(4), (data.test_images[:2],), dynamic={"x": {0: "batch"}})
        trained = ts.PassManager([step]).run(student).program
        with torch.no_grad():
            score = digits.accuracy(trained(data.test_images), data.test_labels)
        print(f"{name:21} {score:.2%} with {trained.cost().parameters} of {teacher.cost().parameters} parameters")


if __name__ == "__main__":
    main()
