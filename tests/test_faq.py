"""Every error that the FAQ quotes is raised as it stands there."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tersor as ts
from tersor.recipe import build_passes

PAGE = Path(__file__).resolve().parents[1] / "docs" / "faq.md"
QUOTED = re.findall(r"^```text\n(.*?)\n```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


class Counter(nn.Module):
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


class Fixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(4, -1) @ torch.ones(8, 2)


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        inverse: Tensor = torch.linalg.inv(x)
        return inverse


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 4)
    return nn.Sequential(*layers)


def images(rows: int = 2) -> Tensor:
    return torch.randn(rows, 1, 8, 8)


def program() -> ts.Program:
    return ts.trace(net(), images())


def flexible() -> ts.Program:
    return ts.trace(net(), images(), dynamic={"input": {0: "batch"}})


def labelled() -> list[tuple[Tensor, Tensor]]:
    return [(images(), torch.tensor([0, 1])) for _ in range(2)]


def quantize(batches: object, found: ts.Program | None = None) -> ts.Program:
    step = ts.Quantize(calibration=batches)  # type: ignore[arg-type]  # what a user may give
    return ts.PassManager([step], progress=False).run(found or program()).program


def with_nan() -> list[Tensor]:
    bad = images()
    bad[0, 0, 0, 0] = float("nan")
    return [images(), bad]


def run(*passes: ts.Pass, on: ts.Program | None = None) -> ts.Program:
    return ts.PassManager(passes, progress=False).run(on or program()).program


def reopen_changed(folder: Path) -> None:
    from tersor.sources import open_artifact

    ts.lower(program(), out=folder)
    (folder / "model.onnx").write_bytes(b"another")
    open_artifact(folder)


def without_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    run(ts.Finetune(labelled(), F.cross_entropy, epochs=1))


def inverted() -> ts.Program:
    x = torch.eye(4).expand(2, 4, 4) + 0.1 * torch.randn(2, 4, 4)
    return quantize([x], ts.trace(nn.Sequential(nn.Linear(4, 4), Odd()), x))


def unstable() -> ts.Program:
    training = ts.Training(epochs=20, learning_rate=1e30, optimizer=ts.Optimizer.SGD, progress=False)
    return run(ts.Finetune(labelled(), F.cross_entropy, training=training))


PROVOKED: dict[str, Callable[[Path, pytest.MonkeyPatch], object]] = {
    "a branch": lambda *_: ts.trace(Branch(), torch.ones(2)),
    "a buffer": lambda *_: ts.trace(Counter(), torch.ones(2)),
    "a fixed size": lambda *_: ts.trace(Fixed(), torch.randn(4, 8), dynamic={"x": {0: "batch"}}),
    "another shape": lambda *_: program()(images(3)),
    "labels": lambda *_: quantize(labelled()),
    "no data": lambda *_: quantize(None),
    "empty data": lambda *_: quantize([]),
    "NaN": lambda *_: quantize(with_nan()),
    "once": lambda *_: run(ts.Finetune(iter(labelled()), F.cross_entropy)),
    "twice": lambda *_: run(ts.Quantize(calibration=[images()]), ts.Quantize(calibration=[images()])),
    "nothing to calibrate": lambda *_: run(ts.Calibrate([images()]), on=quantize([images()])),
    "skip": lambda *_: run(ts.Quantize(calibration=[images()], skip=("head",))),
    "too small": lambda *_: run(ts.PruneChannels(ts.Macs(0.05), least=0.5)),
    "budget": lambda *_: ts.compress(program(), calibration=[images()], budget=ts.Budget(macs="0.01x")),
    "floor": lambda *_: ts.compress(program(), calibration=[images()], budget=ts.Budget(floor="0.99x")),
    "pinned": lambda *_: run(ts.PruneChannels(ts.Macs(0.9), layers=("4.bias",))),
    "no structure": lambda *_: run(ts.Regrow(labelled(), F.cross_entropy)),
    "2:4": lambda *_: run(ts.Sparsify(ts.NM(2, 4)), on=ts.trace(nn.Linear(6, 6), torch.randn(2, 6))),
    "float to neon": lambda *_: ts.lower(program(), "neon"),
    "half integer": lambda *_: ts.lower(inverted(), "hls"),
    "unknown target": lambda *_: ts.lower(program(), "onnx"),
    "unknown pass": lambda *_: build_passes({"passes": ["quantise"]}),
    "unknown option": lambda *_: build_passes({"passes": [{"quantize": {"bits": 4}}]}),
    "another file": lambda folder, _: ts.load(Path(__file__)),
    "changed": lambda folder, _: reopen_changed(folder),
    "accelerate": lambda _, monkeypatch: without_accelerate(monkeypatch),
    "unstable": lambda *_: unstable(),
}


def provoked(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    with pytest.raises(ts.TersorError) as caught:
        PROVOKED[name](folder, monkeypatch)
    return str(caught.value)


def pattern(quoted: str) -> re.Pattern[str]:
    """A quoted error as an expression: three dots stand for anything."""
    return re.compile(".*?".join(map(re.escape, quoted.split("..."))), re.DOTALL)


@pytest.mark.parametrize("name", PROVOKED)
def test_the_faq_quotes_the_error(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = provoked(name, tmp_path, monkeypatch)
    assert any(pattern(quoted).fullmatch(text) for quoted in QUOTED), text


def test_nothing_else_is_quoted(tmp_path: Path) -> None:
    """As many quotes as errors, no two alike, so that each of them is raised by the test above."""
    assert len(QUOTED) == len(PROVOKED) == len(set(QUOTED))
