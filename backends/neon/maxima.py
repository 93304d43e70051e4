"""The greatest of a plane or a row, as a window over all of it."""

from __future__ import annotations

import numpy as np
from torch import fx

from .plan import Planner
from .steps import Pool, Walk


def plan_maximum(planner: Planner, node: fx.Node) -> None:
    """A maximum over dimensions: they are moved last, and the others are the channels of a pool of one pixel."""
    x = node.args[0]
    assert isinstance(x, fx.Node)
    shape = planner.shape(x)
    given = node.args[1] if len(node.args) > 1 else []
    reduced = sorted(int(dim) % len(shape) for dim in given) or list(range(len(shape)))  # type: ignore[union-attr, arg-type]
    if len(shape) == 4 and reduced == [2, 3] and shape[0] == 1:
        source, plane = planner.read(x, 1), (shape[2], shape[3])
        channels = shape[1]
    else:
        kept = [axis for axis in range(len(shape)) if axis not in reduced]
        plane = 1, int(np.prod([shape[axis] for axis in reduced], dtype=np.int64))
        rows = np.transpose(planner.value(x), [*kept, *reduced]).reshape(1, -1, 1, plane[1])
        source, channels = planner.read(rows, 1), rows.shape[1]
    row, column = np.indices(plane)
    taps = (row * source.affine.row_bytes + column * planner.block).reshape(-1).astype(np.int32)
    buffer = planner.allocate(node.name, (1, channels, 1, 1), 1)
    planner.values[node] = buffer.view().reshape(planner.shape(node))
    planner.steps.append(Pool(node.name, (source,), Walk.whole(buffer), "max", taps))
