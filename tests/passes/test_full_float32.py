"""Switches of the process, which several threads want at once."""

from __future__ import annotations

import subprocess
import sys
import threading

import torch
from torch import nn

import tersor as ts
from tersor.passes.full_float32 import full_float32

GPU = torch.device("cuda")


def test_threads_that_overlap_leave_the_switches_as_they_were() -> None:
    assert torch.backends.cudnn.allow_tf32
    inside, out = threading.Event(), threading.Event()

    def other() -> None:
        with full_float32(GPU):
            inside.set()
            out.wait(30)

    thread = threading.Thread(target=other)
    try:
        with full_float32(GPU):
            thread.start()
            assert inside.wait(30)
        assert not torch.backends.cudnn.allow_tf32
        ts.trace(nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 2, 2))  # which reads them
    finally:
        out.set()
        thread.join()
    assert torch.backends.cudnn.allow_tf32


NEWER = """
import torch
from tersor.passes.full_float32 import full_float32
torch.backends.cudnn.conv.fp32_precision = "tf32"
torch.backends.cudnn.rnn.fp32_precision = "ieee"
with full_float32(torch.device("cuda")):
    assert torch.backends.cudnn.conv.fp32_precision == "ieee"
assert torch.backends.cudnn.conv.fp32_precision == "tf32"
"""


def test_newer_switches_are_put_back_too() -> None:
    """In a process of its own: torch cannot go back to where only the older ones were used."""
    subprocess.run([sys.executable, "-c", NEWER], check=True)


def test_nothing_is_touched_for_the_cpu() -> None:
    with full_float32(torch.device("cpu")):
        assert torch.backends.cudnn.allow_tf32
