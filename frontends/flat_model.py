"""A model with flat tensors in and out, so that torch.export need not know how its inputs and outputs are nested."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tersor.ir.errors import SignatureError, TraceError
from tersor.ir.structure import Structure, flatten

from .export_errors import explain

PREFIX = "model."
"""What the names of the model's tensors and modules begin with inside `FlatModel`."""


class FlatModel(nn.Module):
    """Nests flat tensors as the model takes them, calls it, and flattens what it returns.

    torch.export knows the containers that are registered with it. Here any container does that `Structure` can hold,
    a plain dataclass among them. `outputs` is the structure of what the model returned last.
    """

    outputs: Structure

    def __init__(self, model: nn.Module, inputs: Structure) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Raises TraceError with the user's line where the model raises anything at all."""
        args, kwargs = self.inputs.unflatten(iter(tensors))
        try:
            result = self.model(*args, **kwargs)
        except Exception as error:  # the model is somebody's code
            raise explain(error, self.model) from error
        leaves, self.outputs = _flatten_outputs(result)
        return tuple(leaves)


def _flatten_outputs(result: Any) -> tuple[list[Tensor], Structure]:
    try:
        leaves, structure = flatten(result, "output")
    except SignatureError as error:
        sizes = "; a size is given as torch.tensor(x.shape[0])" if str(error.found).startswith("Sym") else ""
        raise TraceError(
            f"the model's {error.what}", expected=error.expected, hint=f"leave it out of what forward returns{sizes}"
        ) from None
    if not leaves:
        raise TraceError("the model returns no tensor", expected="at least one tensor", found=repr(result))
    return leaves, structure
