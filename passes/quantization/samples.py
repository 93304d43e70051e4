"""A bounded, even sample of what operators read, in one pass over data of any length."""

from __future__ import annotations

import torch
from torch import Tensor


class Rows:
    """At most `limit` rows of a stream, evenly spaced over all of it, and the largest magnitude of each channel.

    Every `stride`-th row is kept. Where that becomes too many, every second one goes and the stride doubles. So the
    sample depends neither on chance nor on how the rows came in batches. The row with the largest value of each batch
    is kept as well, up to `limit // 4` of them, the largest: clipping is judged by outliers, and few rows hold them.
    """

    def __init__(self, limit: int = 512) -> None:
        self.limit = limit
        self.stride = 1
        self.seen = 0
        self.largest: Tensor | None = None
        self._kept: list[Tensor] = []
        self._count = 0
        self._extreme: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Take in float[rows, channels]."""
        rows = rows.detach().float()
        if not rows.shape[0]:
            return
        magnitude = rows.abs()
        largest = magnitude.amax(0)
        self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)
        self._keep_extreme(rows[magnitude.amax(1).argmax()].clone())
        start = -self.seen % self.stride
        self._kept.append(rows[start :: self.stride].clone())
        self.seen += rows.shape[0]
        self._count += self._kept[-1].shape[0]
        while self._count > self.limit:
            self._thin()

    def sample(self) -> Tensor:
        """float32[rows, channels]."""
        kept = self._kept if self._extreme is None else [*self._kept, self._extreme]
        return torch.cat(kept)

    def _thin(self) -> None:
        self._kept = [torch.cat(self._kept)[::2].clone()]
        self._count = self._kept[0].shape[0]
        self.stride *= 2

    def _keep_extreme(self, row: Tensor) -> None:
        rows = row.unsqueeze(0) if self._extreme is None else torch.cat([self._extreme, row.unsqueeze(0)])
        most = max(1, self.limit // 4)
        if rows.shape[0] > most:
            order = rows.abs().amax(1).argsort(descending=True)[:most]
            rows = rows[order.sort().values]
        self._extreme = rows


class Gram:
    """The mean of x x^T over all rows of a stream: float64[channels, channels], the Hessian of a layer's squared error.

    Raises no error on an empty stream: `mean` is then None.
    """

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.rows = 0

    def add(self, rows: Tensor) -> None:
        """Take in float[rows, channels]; products in float32, sums in float64."""
        rows = rows.detach().float()
        product = (rows.T @ rows).double()
        self.total = product if self.total is None else self.total.add_(product)
        self.rows += rows.shape[0]

    @property
    def mean(self) -> Tensor | None:
        """The mean, None where nothing was seen."""
        return None if self.total is None else self.total / max(self.rows, 1)
