"""How long a pass takes by the number of nodes: it has to be linear, and at most a second per 10,000 nodes."""

from __future__ import annotations

import time

import torch
from torch import fx, nn

from tersor.ir.program import Program
from tersor.ir.signature import Signature, TensorSpec
from tersor.ir.structure import Structure
from tersor.passes.base import Pass
from tersor.passes.canonical.canonicalize import Canonicalize
from tersor.passes.quantization.insert_fake_quant import InsertFakeQuant
from tersor.passes.rewriting.fold_batchnorm import FoldBatchNorm

from .results import Row

aten = torch.ops.aten
SIZES = (1_000, 10_000, 100_000)
GOAL = 1.0


def chain(nodes: int) -> Program:
    """A program of about that many nodes: linear, dropout, add, relu, over and over, sharing one small weight."""
    graph = fx.Graph()
    leaf = Structure("leaf")
    value = graph.placeholder("x")
    weight, bias = graph.get_attr("weight"), graph.get_attr("bias")
    for _ in range(nodes // 4):
        linear = graph.call_function(aten.linear.default, (value, weight, bias))
        dropped = graph.call_function(aten.dropout.default, (linear, 0.1, False))
        added = graph.call_function(aten.add.Tensor, (dropped, value))
        value = graph.call_function(aten.relu.default, (added,))
    graph.output((value,))
    tensors = {"weight": nn.Parameter(torch.eye(4) / 2), "bias": nn.Parameter(torch.zeros(4))}
    signature = Signature(
        (TensorSpec("x", torch.float32, (2, 4)),), Structure("tuple", (leaf,)), Structure("dict"), leaf, ("x",)
    )
    return Program.build(graph, tensors, signature, name=f"chain_{nodes}")


def run(quick: bool) -> list[Row]:
    """A row a pass and size: seconds per 10,000 nodes, and that over the same at 1,000 nodes (1 is linear)."""
    sizes = SIZES[:2] if quick else SIZES
    rows = []
    passes: tuple[Pass, ...] = (Canonicalize(), FoldBatchNorm(), InsertFakeQuant())
    first: dict[str, float] = {}
    for nodes in sizes:
        program = chain(nodes)
        for step in passes:
            given = program.copy()
            started = time.perf_counter()
            step.run(given)
            rate = (time.perf_counter() - started) * 10_000 / len(program.graph.nodes)
            growth = rate / first.setdefault(step.name, rate)
            note = f"{growth:.2f} times the rate at {sizes[0]:,} nodes"
            goal = f"<= {GOAL:g} s, linear"
            rows.append(Row(f"{step.name}, {nodes:,} nodes", rate, "s per 10,000", goal=goal, note=note))
    return rows
