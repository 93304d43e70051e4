"""Settings of `transformers` models that have a form that can be traced: set for the trace, restored, and said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def settings_for_export(model: nn.Module, kwargs: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """Yields keyword inputs to add and notes on what was set.

    use_cache: a language model returns its key-value cache as an object that no graph can hold; it is left out.
    experts: the default kernel of mixture-of-experts layers is a foreign operator; batched matrix products are exact.
    """
    config = getattr(model, "config", None)
    extra: dict[str, Any] = {}
    notes: list[str] = []
    if getattr(config, "use_cache", False) and "use_cache" not in kwargs and "past_key_values" not in kwargs:
        extra["use_cache"] = False
        notes.append("traced with use_cache=False: the key-value cache is not an output")
    setter = getattr(model, "set_experts_implementation", None)
    previous = getattr(config, "_experts_implementation", None)
    has_experts = any("Experts" in type(module).__name__ for module in model.modules())
    if setter is None or not has_experts or previous == "batched_mm":
        yield extra, notes
        return
    setter("batched_mm")
    try:
        notes.append(f"traced with experts as batched_mm; the model's own setting is {previous!r}")
        yield extra, notes
    finally:
        setter(previous)
