"""Golden vectors: frames of inputs and outputs as the streams carry them, computed by the integer stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from tersor.ir.example import example_of
from tersor.ir.program import Program
from tersor.ir.requantize_forms import Ints

from .artifact import PortRow
from .graph import Port

_RANDOM = 2
_SPREAD = 4.0


def golden_vectors(program: Program, inputs: Sequence[Port], outputs: Sequence[Port]) -> str:
    """The text that the testbench reads: the number of frames, then each frame's inputs and outputs.

    Frames: the example, random values beyond the grid's ends, and both ends of every input's grid.
    """
    frames = [list(example_of(program)), *_made(program, inputs)]
    values = [np.array([len(frames)])]
    for frame in frames:
        held = integers(program, frame)
        values += [PortRow.of(port).sent(frame[port.index]) for port in inputs]
        values += [expected(program, port, held) for port in outputs]
    return "\n".join(str(value) for part in values for value in part.tolist()) + "\n"


def expected(program: Program, port: Port, held: dict[str, Any]) -> Ints:
    """What an output's stream carries, from the values of the program's nodes."""
    q = program.outputs[port.index].args[0]
    assert isinstance(q, fx.Node)
    values = np.zeros(port.stream.count, np.int64)
    values[port.order] = held[q.name].reshape(-1).numpy().astype(np.int64) - port.stream.low
    return values


def integers(program: Program, inputs: Sequence[Tensor]) -> dict[str, Any]:
    """The value of every node of the program, by name."""
    held: dict[str, Any] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            held[node.name] = super().run_node(node)
            return held[node.name]

    Recorder(program.module).run(*inputs)
    return held


def _made(program: Program, inputs: Sequence[Port]) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shapes = [tuple(int(size) for size in spec.shape) for spec in program.signature.inputs]
    scales = {port.index: port.scale[0] * 127 for port in inputs}
    frames = [
        [torch.randn(shape, generator=generator) * scales.get(i, 1.0) / _SPREAD for i, shape in enumerate(shapes)]
        for _ in range(_RANDOM)
    ]
    for sign in (-1.0, 1.0):
        frames.append([torch.full(shape, sign * 4 * scales.get(i, 1.0)) for i, shape in enumerate(shapes)])
    return frames
