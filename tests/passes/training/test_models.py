"""Models that the loop has not been written for: recurrent, tied, with several outputs, with batches of names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tersor as ts
from tersor.passes.training.program_task import ProgramTask, Settings

ROWS = 24
IMAGES = torch.randn(ROWS, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(20, (ROWS, 6), generator=torch.Generator().manual_seed(1))
LABELS = torch.randint(4, (ROWS,), generator=torch.Generator().manual_seed(2))
BOXES = torch.randn(ROWS, 2, generator=torch.Generator().manual_seed(3))


class Inverted(nn.Module):
    """A block of MobileNetV2 with a residual, dropout, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(3, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU6())
        self.depth = nn.Sequential(
            nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12), nn.ReLU6()
        )
        self.project = nn.Sequential(nn.Conv2d(12, 3, 1, bias=False), nn.BatchNorm2d(3))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.project(self.depth(self.expand(x)))
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


class Recurrent(nn.Module):
    """Two recurrent layers with dropout between them."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.layers = kind(8, 12, 2, batch_first=True, dropout=0.5)
        self.head = nn.Linear(12, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(self.embedding(tokens))[0][:, -1])
        return logits


class Tied(nn.Module):
    """Embedding and head are one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.middle = nn.Embedding(20, 12), nn.Linear(12, 12)
        self.head = nn.Linear(12, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.tanh(self.middle(self.embedding(tokens))))
        return logits


class Detector(nn.Module):
    """Two outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.classes, self.boxes = nn.Linear(8, 4), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.body(x).mean((2, 3))
        return {"classes": self.classes(x), "boxes": self.boxes(x)}


class Named(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Samples as dicts."""

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": IMAGES[index], "labels": LABELS[index]}


def pairs(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    return list(zip(*(tensor.split(8) for tensor in tensors), strict=True))


def traced(model: nn.Module, example: Tensor, name: str) -> ts.Program:
    return ts.trace(model.eval(), (example[:2],), dynamic={name: {0: "batch"}})


def mobile() -> tuple[ts.Program, Any, Any]:
    return traced(Inverted(), IMAGES, "x"), pairs(IMAGES, LABELS), F.cross_entropy


def loader() -> tuple[ts.Program, Any, Any]:
    batches = torch.utils.data.DataLoader(Named(), batch_size=8, shuffle=True)
    return traced(Inverted(), IMAGES, "x"), batches, lambda logits, labels: F.cross_entropy(logits, labels)


def recurrent() -> tuple[ts.Program, Any, Any]:
    return traced(Recurrent(nn.LSTM), TOKENS, "tokens"), pairs(TOKENS, LABELS), F.cross_entropy


def tied() -> tuple[ts.Program, Any, Any]:
    def loss(logits: Tensor, tokens: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())

    return traced(Tied(), TOKENS, "tokens"), pairs(TOKENS, TOKENS), loss


def detector() -> tuple[ts.Program, Any, Any]:
    def loss(outputs: dict[str, Tensor], labels: Tensor, boxes: Tensor) -> Tensor:
        return F.cross_entropy(outputs["classes"], labels) + F.mse_loss(outputs["boxes"], boxes)

    return traced(Detector(), IMAGES, "x"), pairs(IMAGES, LABELS, BOXES), loss


def language_model() -> tuple[ts.Program, Any, Any]:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=20, n_positions=8, n_embd=16, n_layer=1, n_head=2, use_cache=False, bos_token_id=0, eos_token_id=0
    )

    def loss(outputs: Any, following: Tensor) -> Tensor:
        return F.cross_entropy(outputs["logits"].flatten(0, 1), following.flatten())

    batches = [{"input_ids": tokens, "following": tokens} for tokens in TOKENS.split(8)]
    return traced(GPT2LMHeadModel(config), TOKENS, "input_ids"), batches, loss


MODELS: dict[str, Callable[[], tuple[ts.Program, Any, Any]]] = {
    "mobile": mobile,
    "loader of dicts": loader,
    "recurrent": recurrent,
    "tied weights": tied,
    "two outputs": detector,
    "language model": language_model,
}


@pytest.fixture(params=MODELS, scope="module")
def case(request: pytest.FixtureRequest) -> tuple[ts.Program, Any, Any]:
    torch.manual_seed(0)
    return MODELS[request.param]()


def loss_of(program: ts.Program, batches: Any, loss: Any) -> float:
    """The mean loss, in inference mode."""
    settings = Settings(loss, lambda outputs, *targets, **named: loss(outputs, *targets, **named).item(), batches)
    with torch.no_grad():
        return ProgramTask(program, settings).evaluate() or 0.0


@pytest.mark.parametrize("kind", [ts.Finetune, ts.Distill, ts.TrainQuantized])
def test_every_pass_learns(case: tuple[ts.Program, Any, Any], kind: Any) -> None:
    program, batches, loss = case
    options = ts.Training(epochs=6, learning_rate=0.02, progress=False)
    learned = ts.PassManager([kind(batches, loss, training=options)], progress=False).run(program).program
    assert loss_of(learned, batches, loss) < loss_of(program, batches, loss) - 0.05


def test_mixed_precision(case: tuple[ts.Program, Any, Any]) -> None:
    """The sums are of 8 bits of mantissa; weights, and what comes of them, stay float32."""
    program, batches, loss = case
    options = ts.Training(epochs=6, learning_rate=0.02, precision=ts.Precision.BFLOAT16, progress=False)
    learned = ts.PassManager([ts.Finetune(batches, loss, training=options)], progress=False).run(program).program
    assert {tensor.dtype for tensor in learned.parameters().values()} == {torch.float32}
    assert loss_of(learned, batches, loss) < loss_of(program, batches, loss) - 0.05


def test_tied_weights_stay_one() -> None:
    program, batches, loss = tied()
    options = ts.Training(epochs=1, learning_rate=0.02, progress=False)
    learned = ts.PassManager([ts.Finetune(batches, loss, training=options)], progress=False).run(program).program
    assert len(learned.parameters()) == len(program.parameters())
    names = [name for name, tensor in learned.tensors().items() if tensor.shape == (20, 12)]
    assert all(learned.tensor(name) is learned.tensor(names[0]) for name in names)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_dropout_between_recurrent_layers_is_on_while_training_alone(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    program = traced(Recurrent(kind), TOKENS, "tokens")
    training = program.copy().train()
    assert not torch.equal(training(TOKENS), training(TOKENS))
    torch.testing.assert_close(training.eval()(TOKENS), program(TOKENS))


@pytest.mark.parametrize("kind", [ts.Distill, ts.TrainQuantized])
def test_outputs_that_nobody_teaches_are_named(kind: Any) -> None:
    """The teacher tells of logits alone; a loss on targets is what the others can learn from."""
    program, batches, loss = detector()
    options = ts.Training(steps=1, progress=False)
    inputs = [images for images, *_ in batches]
    for given, said in (((inputs, None), True), ((batches, loss), False)):
        learned = ts.PassManager([kind(*given, training=options)], progress=False).run(program).program
        assert any("not taught: boxes" in note for note in learned.history[-1].notes) is said
