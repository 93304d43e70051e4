"""Artifacts that run one sample at a time, and take batches of any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import fx

from tersor.ir.shapes import KEY
from tersor.ir.signature import Range, Signature, TensorSpec

BATCH = "batch"
"""The name of the dimension that samples are taken from."""


def batched(signature: Signature, outputs: Sequence[fx.Node]) -> Signature:
    """The signature with a dynamic batch, where every input and output starts with 1: samples are run one by one."""
    shapes = [*(spec.shape for spec in signature.inputs), *(tuple(node.meta[KEY].shape) for node in outputs)]
    if not all(shape and shape[0] == 1 for shape in shapes):
        return signature
    inputs = tuple(TensorSpec(spec.name, spec.dtype, (BATCH, *spec.shape[1:])) for spec in signature.inputs)
    return replace(signature, inputs=inputs, dims={BATCH: Range()})


def is_batched(signature: Signature) -> bool:
    """Whether `batched` gave the signature its batch."""
    return bool(signature.inputs) and signature.inputs[0].shape[:1] == (BATCH,)
