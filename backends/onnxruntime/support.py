"""What ONNX Runtime takes, and what it has no integer kernel for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tersor.ir.program import Program

from ..base import Unsupported

if TYPE_CHECKING:
    from ..onnx.builder import OnnxOptions

aten = torch.ops.aten

FLOAT_ONLY: dict[Any, str] = {
    aten.gelu.default: "Gelu",
    aten.tanh.default: "Tanh",
    aten.hardswish.default: "HardSwish",
    aten.hardsigmoid.default: "HardSigmoid",
    aten.elu.default: "Elu",
    aten.mish.default: "Mish",
    aten.softplus.default: "Softplus",
    aten.erf.default: "Erf",
    aten.exp.default: "Exp",
    aten.sqrt.default: "Sqrt",
    aten.relu.default: "Relu",
    aten.hardtanh.default: "Clip",
    aten.clamp.default: "Clip",
    aten.relu6.default: "Clip",
    aten.layer_norm.default: "LayerNormalization",
    aten.group_norm.default: "GroupNormalization",
    aten.rms_norm.default: "RMSNormalization",
    aten.batch_norm.default: "BatchNormalization",
    aten.sub.Tensor: "Sub",
    aten.div.Tensor: "Div",
    aten.maximum.default: "Max",
    aten.minimum.default: "Min",
    aten.mean.dim: "ReduceMean",
    aten.conv_transpose1d.default: "ConvTranspose",
    aten.conv_transpose2d.input: "ConvTranspose",
    aten.upsample_bilinear2d.vec: "linear Resize",
}
"""ATen operators for whose ONNX counterpart, the value here, ONNX Runtime has no integer kernel on x86."""


def unsupported_nodes(program: Program, options: OnnxOptions) -> list[Unsupported]:
    """The nodes that cannot be written as ONNX, in order."""
    from ..onnx.emit import unsupported

    return unsupported(program, options)
