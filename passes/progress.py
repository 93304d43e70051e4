"""How a long pass tells how far it is: it wraps what it iterates over, and whoever runs it decides what is shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar

T = TypeVar("T")


class Listener(Protocol):
    """Called with a description, how many are done, how many there are (None where that is not known), and a note."""

    def __call__(self, description: str, done: int, total: int | None, note: str = ..., /) -> None: ...


_listener: ContextVar[Listener | None] = ContextVar("progress", default=None)


@contextmanager
def listening(listener: Listener | None) -> Iterator[None]:
    """Send progress to `listener` inside the block; None leaves the listener that there is."""
    token = _listener.set(listener or _listener.get())
    try:
        yield
    finally:
        _listener.reset(token)


def heard() -> bool:
    """Whether somebody listens."""
    return _listener.get() is not None


def tell(description: str, done: int, total: int | None, note: str) -> None:
    """Tell the listener, if there is one; `note` is what goes beside the bar, such as a loss."""
    listener = _listener.get()
    if listener is not None:
        listener(description, done, total, note)


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield the items, telling the listener after each."""
    listener = _listener.get()
    if total is None and isinstance(items, Sized):
        total = len(items)
    for done, item in enumerate(items, start=1):
        yield item
        if listener is not None:
            listener(description, done, total)
