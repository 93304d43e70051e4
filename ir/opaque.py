"""Stand-ins that keep batch norm and dropout whole while torch makes a graph functional.

`ExportedProgram.run_decompositions` turns them into operators that return tuples and can no longer switch between
training and inference. So they are swapped for operators that it knows nothing about, and swapped back after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten

_LIBRARY = torch.library.Library("tersor_opaque", "DEF")
_LIBRARY.define(
    "batch_norm(Tensor x, Tensor? weight, Tensor? bias, Tensor? mean, Tensor? var, bool training, float momentum, "
    "float eps, bool cudnn) -> Tensor"
)
_LIBRARY.define("dropout(Tensor x, float p, bool train) -> Tensor")
_LIBRARY.define("feature_dropout(Tensor x, float p, bool train) -> Tensor")


def _copy(x: Tensor, *_: object) -> Tensor:
    return x.clone()


for _name in ("batch_norm", "dropout", "feature_dropout"):
    _LIBRARY.impl(_name, _copy, "CompositeExplicitAutograd")
    torch.library.register_fake(f"tersor_opaque::{_name}", lambda x, *_: torch.empty_like(x), lib=_LIBRARY)

opaque = torch.ops.tersor_opaque
_HIDE = {
    aten.batch_norm.default: opaque.batch_norm.default,
    aten.dropout.default: opaque.dropout.default,
    aten.dropout_.default: opaque.dropout.default,
    aten.feature_dropout.default: opaque.feature_dropout.default,
    aten.feature_dropout_.default: opaque.feature_dropout.default,
}
_REVEAL = {
    opaque.batch_norm.default: aten.batch_norm.default,
    opaque.dropout.default: aten.dropout.default,
    opaque.feature_dropout.default: aten.feature_dropout.default,
}


def hide(graph: fx.Graph) -> None:
    """Swap batch norm and dropout for their stand-ins."""
    _swap(graph, _HIDE)


def reveal(graph: fx.Graph) -> None:
    """Swap the stand-ins back."""
    _swap(graph, _REVEAL)


def _swap(graph: fx.Graph, table: Mapping[Any, Any]) -> None:
    for node in graph.nodes:
        if node.op == "call_function" and node.target in table:
            node.target = table[node.target]
