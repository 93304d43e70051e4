"""What one import may take, whatever its file asks for: few bytes can ask for any number of turns and elements."""

from __future__ import annotations

from collections.abc import Iterable

from onnx import ModelProto, NodeProto

from tersor.ir.errors import TraceError

MOST_AXES, MOST_DYNAMIC = 16, 8
"""Of a tensor, and of them those whose size may change. Real ones have few; each more takes torch longer."""

_FREE_WORK = 60_000
_WORK_PER_NODE = 60
_FREE_BYTES = 1 << 28
_BYTES_PER_STORED = 4
_FREE_ELEMENTS = 1 << 20


class Budget:
    """Work and memory that an import may still take. Both are generous for any file, and grow with it.

    A unit of work takes some 50 microseconds: a node, a turn of a loop. The type of a new kind of operator takes forty.
    """

    def __init__(self, model: ModelProto, size: int) -> None:
        nodes = sum(map(_count, [model.graph.node, *(function.node for function in model.functions)]))
        self._nodes = nodes
        self._work = _FREE_WORK + _WORK_PER_NODE * nodes
        self._size = size
        self.start_again()

    def start_again(self) -> None:
        """The memory for another try, which frees what the one before took; its work is gone."""
        self._bytes = _FREE_BYTES + _BYTES_PER_STORED * self._size
        self._largest = _FREE_ELEMENTS

    def spend(self, work: int) -> None:
        """Raises TraceError where no work is left."""
        self._work -= work
        if self._work < 0:
            raise TraceError(
                "loops, functions and constants of the model unfold to too much",
                expected=f"work in proportion to the {self._nodes} nodes of the file",
                hint="let loops turn less often, or leave out what they repeat",
            )

    def stored(self, elements: int, size: int) -> None:
        """A tensor of the model lies beside the file: as large a one may be computed from it."""
        self._largest = max(self._largest, 2 * elements)
        self._bytes += _BYTES_PER_STORED * size

    def affords(self, elements: int, size: int) -> bool:
        """Take the bytes for something computed at import; False where it is too large, or there are too few left."""
        if elements > self._largest or size > self._bytes:
            return False
        self._bytes -= size
        return True

    def read(self, elements: int, size: int) -> None:
        """Take the bytes for a tensor that stands in the file. Raises TraceError where loops read it too often."""
        self._largest = max(self._largest, 2 * elements)
        if size > self._bytes:
            raise TraceError(
                "tensors of the file are read again and again", expected="memory in proportion to the file"
            )
        self._bytes -= size


def _count(nodes: Iterable[NodeProto]) -> int:
    """Nodes, those of sub-graphs among them."""
    return sum(1 + sum(_count(attribute.g.node) for attribute in node.attribute) for node in nodes)
