"""Inputs made from a teacher alone: no sample of the data that it learned from is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from tersor.ir.errors import TrainingError
from tersor.ir.placement import move
from tersor.ir.program import Program
from tersor.ir.signature import TensorSpec

from ..arguments import argument
from .training_graph import owned, tapped

aten = torch.ops.aten


@dataclass(frozen=True)
class _Norm:
    """A batch norm's memory of the data: what mean and variance each channel had."""

    mean: Tensor
    variance: Tensor


class Memory:
    """A teacher asked for its logits, and for how far a batch is from the statistics in its batch norms.

    Raises TrainingError where the program has no batch norm with running statistics (folding removes them), or takes
    anything but one float image or vector.
    """

    def __init__(self, teacher: Program) -> None:
        nodes = [
            node
            for node in teacher.graph.find_nodes(op="call_function", target=aten.batch_norm.default)
            if _statistics(teacher, node) is not None
        ]
        if not nodes:
            hint = "synthesize from the program before FoldBatchNorm, or distill with data"
            raise TrainingError("the teacher remembers nothing of its data: it has no batch norm", hint=hint)
        self.shape = input_shape(teacher)
        self.norms = [found for node in nodes if (found := _statistics(teacher, node)) is not None]
        sources = [node.args[0].name for node in nodes]
        self.count = len(teacher.signature.output_names)
        self.program = owned(tapped(teacher, sources).eval(), torch.device("cpu"))

    def to(self, device: torch.device) -> None:
        """Move to a device."""
        move(self.program, device)
        self.norms = [_Norm(norm.mean.to(device), norm.variance.to(device)) for norm in self.norms]

    def logits(self, inputs: Tensor) -> Tensor:
        """What the teacher says."""
        return self.program.run([inputs])[0]

    def look(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The logits, and the mean distance of a batch's statistics from those remembered, both with gradients."""
        values = self.program.run([inputs])
        return values[0], self._distance(values[self.count :])

    def _distance(self, features: Sequence[Tensor]) -> Tensor:
        """In units of the remembered deviation, so that layers count alike (Yin et al. 2020, arXiv:1912.08795)."""
        total = torch.zeros(())
        for value, norm in zip(features, self.norms, strict=True):
            others = [dim for dim in range(value.dim()) if dim != 1]
            variance, mean = torch.var_mean(value, others, correction=0)
            scale = norm.variance + 1e-5
            total = total + ((mean - norm.mean).square() / scale).mean()
            total = total + (variance.clamp(min=1e-8) / scale).log().square().mean()
        return total / len(self.norms)


def _statistics(program: Program, node: fx.Node) -> _Norm | None:
    mean = program.constant(argument(node, "running_mean"))
    variance = program.constant(argument(node, "running_var"))
    return None if mean is None or variance is None else _Norm(mean.detach().clone(), variance.detach().clone())


def input_shape(program: Program) -> tuple[int, ...]:
    """The sizes of one sample. Raises TrainingError where the program does not take one batch of float tensors."""
    specs = program.signature.inputs
    fits = len(specs) == 1 and specs[0].dtype.is_floating_point and len(specs[0].shape) in (2, 3, 4)
    if not fits or not isinstance(specs[0].shape[0], str):
        raise TrainingError(
            "inputs cannot be synthesized for this program",
            expected="one float input whose first dimension is dynamic and whose others are sizes",
            found=program.signature.describe(),
        )
    return tuple(_size(specs[0], dim) for dim in range(1, len(specs[0].shape)))


def _size(spec: TensorSpec, dim: int) -> int:
    size = spec.shape[dim]
    if not isinstance(size, int):
        raise TrainingError(f"inputs cannot be synthesized: size {size!r} of {spec.name!r} is not fixed")
    return size


class Generator(nn.Module):
    """Noise to inputs: a small upsampling network for images, a perceptron for vectors and sequences.

    The last norm has no scale of its own, so that outputs have mean 0 and deviation 1 in each channel, which a learned
    scale and shift then place.
    """

    def __init__(self, shape: Sequence[int], noise: int = 64, width: int = 64) -> None:
        super().__init__()
        self.noise, self.shape = noise, tuple(shape)
        self.image = len(shape) == 3
        channels = shape[0]
        if self.image:
            self.start = [max(1, size // 4) for size in shape[1:]]
            self.first = nn.Linear(noise, width * self.start[0] * self.start[1])
            self.norms = nn.ModuleList([nn.BatchNorm2d(width) for _ in range(3)])
            self.layers = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in range(2)])
            self.last: nn.Module = nn.Conv2d(width, channels, 3, padding=1)
            self.norm: nn.Module = nn.BatchNorm2d(channels)
        else:
            count = int(torch.tensor(shape).prod())
            self.layers = nn.ModuleList([nn.Linear(noise, 2 * width), nn.Linear(2 * width, 2 * width)])
            self.norms = nn.ModuleList([nn.BatchNorm1d(2 * width) for _ in range(2)])
            self.last = nn.Linear(2 * width, count)
            self.norm = nn.BatchNorm1d(count)

    def forward(self, noise: Tensor) -> Tensor:
        """float[batch, noise] to float[batch, *shape]."""
        return self._image(noise) if self.image else self._vector(noise)

    def _image(self, noise: Tensor) -> Tensor:
        x = self.norms[0](self.first(noise).unflatten(1, (-1, *self.start)))
        x = F.leaky_relu(x, 0.2)
        for layer, norm in zip(self.layers, list(self.norms)[1:], strict=True):
            sizes = [min(size, 2 * have) for size, have in zip(self.shape[1:], x.shape[2:], strict=True)]
            x = F.leaky_relu(norm(layer(F.interpolate(x, size=sizes, mode="nearest"))), 0.2)
        images: Tensor = self.norm(self.last(F.interpolate(x, size=self.shape[1:], mode="bilinear")))
        return images

    def _vector(self, noise: Tensor) -> Tensor:
        x = noise
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = F.leaky_relu(norm(layer(x)), 0.2)
        values: Tensor = self.norm(self.last(x)).unflatten(1, self.shape)
        return values


class ReverseGradient(torch.autograd.Function):
    """The identity whose gradient is turned round, times a strength: what one side makes small, the other makes large.

    (Ganin & Lempitsky 2015, arXiv:1409.7495.)
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * grads[0], None


def smoothness(images: Tensor) -> Tensor:
    """The mean square of differences between neighbouring pixels of [batch, channels, height, width]; else 0."""
    if images.dim() != 4:
        return images.sum() * 0.0
    down = (images[:, :, 1:] - images[:, :, :-1]).square().mean()
    right = (images[..., 1:] - images[..., :-1]).square().mean()
    return down + right
