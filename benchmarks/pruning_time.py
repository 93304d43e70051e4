"""How long pruning takes by the number of nodes: analysis, scores, search and cut, on transformers' graphs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import tersor as ts
from tersor.passes.pruning.analysis import dimensions

from .results import Row

GOAL = 10.0


def _llama(layers: int) -> tuple[nn.Module, dict[str, Any]]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=128, num_attention_heads=8, num_key_value_heads=2, intermediate_size=352, vocab_size=256,
        num_hidden_layers=layers,
    )  # fmt: skip
    return LlamaForCausalLM(config), {"input_ids": torch.randint(0, 256, (1, 16))}


def _resnet(layers: int) -> tuple[nn.Module, dict[str, Any]]:
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(ResNetConfig(depths=[3, 4, layers, 3])), {"pixel_values": _image()}


def _image() -> torch.Tensor:
    return torch.randn(1, 3, 64, 64)


CASES: dict[str, tuple[Callable[[int], tuple[nn.Module, dict[str, Any]]], tuple[int, ...]]] = {
    "Llama": (_llama, (4, 16, 48)),
    "ResNet": (_resnet, (6, 36)),
}


def run(quick: bool) -> list[Row]:
    """Two rows a size: seconds of the analysis alone, and of PruneChannels(Macs(0.5)) as a whole."""
    rows = []
    for name, (make, sizes) in CASES.items():
        for size in sizes[:1] if quick else sizes:
            torch.manual_seed(0)
            model, inputs = make(size)
            program = ts.trace(model.eval(), (), inputs)
            nodes = len(program.graph.nodes)
            started = time.perf_counter()
            found = dimensions(program)
            analysis = time.perf_counter() - started
            step, given = ts.PruneChannels(ts.Macs(0.5)), program.copy()
            started = time.perf_counter()
            step.run(given)
            whole = time.perf_counter() - started
            what = f"{name}, {nodes:,} nodes"
            rows.append(Row(f"{what}: analysis", analysis, "s", note=f"{len(found.prunable)} axes can shrink"))
            rows.append(Row(f"{what}: PruneChannels", whole, "s", goal=f"< {GOAL:g} s at a few thousand nodes"))
    return rows
