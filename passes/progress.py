"""How a long pass tells how far it is: it wraps what it iterates over, and whoever runs it decides what is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")
Listener = Callable[[str, int, int | None], None]
"""Called with a description, how many are done, and how many there are (None where that is not known)."""

_listener: ContextVar[Listener | None] = ContextVar("progress", default=None)


@contextmanager
def listening(listener: Listener | None) -> Iterator[None]:
    """Send progress to `listener` inside the block; None leaves the listener that there is."""
    token = _listener.set(listener or _listener.get())
    try:
        yield
    finally:
        _listener.reset(token)


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield the items, telling the listener after each."""
    listener = _listener.get()
    if total is None and isinstance(items, Sized):
        total = len(items)
    for done, item in enumerate(items, start=1):
        yield item
        if listener is not None:
            listener(description, done, total)
