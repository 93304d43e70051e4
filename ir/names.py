"""Names for tensors that do not collide with what a module already has."""

from __future__ import annotations

import re
import unicodedata
from keyword import iskeyword

from torch import fx, nn

TRAINED = "tersor.trained"
"""The note by which a tensor of an ONNX file says that it is a parameter, `yes`, or is none, `no`."""

_RESERVED = frozenset(dir(fx.GraphModule(nn.Module(), fx.Graph())))


def legal(name: str) -> str:
    """A dotted tensor name whose parts can be attributes of nested modules: `graph.weight` becomes `graph_.weight`.

    Names of real models pass unchanged unless a part is a keyword, or a method of torch.nn.Module or
    torch.fx.GraphModule. Letters are composed, as Python composes those of the code that it reads.
    """
    parts = [re.sub(r"\W", "_", part) or "_" for part in unicodedata.normalize("NFKC", name).split(".")]
    return ".".join(f"{part}_" if part in _RESERVED or iskeyword(part) else part for part in parts)
