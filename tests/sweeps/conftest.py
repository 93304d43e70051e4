"""A folder with a module that workers import, as a person has one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import pytest

ZOO = """
import os, time
import torch
from torch import nn
from pathlib import Path

HERE = Path(__file__).parent

def model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(144, 10))
    return net.eval(), torch.randn(1, 3, 8, 8)

def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, 3, 8, 8, generator=generator) for _ in range(4)]

def score(program):
    with (HERE / "calls.txt").open("a") as file:
        file.write(f"{os.getpid()}\\n")
    net, _ = model()
    return -sum(float((program(b) - net(b)).square().sum()) for b in batches())

def slow(program):
    time.sleep(0.4)
    return score(program)

def nan(program):
    return float("nan")

def text(program):
    return "good"

def exits(job):
    os._exit(3)

def echo(job):
    return job.failed("echo")

def dies(program):
    bits = {node.args[5] for node in program.graph.nodes if "fake_quantize.default" in str(node.target)}
    if 7 in bits:
        os._exit(7)
    return score(program)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, which holds zoo.py."""
    (tmp_path / "zoo.py").write_text(ZOO)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), *sys.path])
    sys.modules.pop("zoo", None)
    yield tmp_path
    sys.modules.pop("zoo", None)


@pytest.fixture
def here() -> Iterator[Executor]:
    """An executor that needs no process."""
    with ThreadPoolExecutor(1) as executor:
        yield executor
