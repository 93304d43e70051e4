"""Quiet while a model is traced: what torch has to say about a failure, the error says."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGERS = (
    "torch._subclasses.fake_tensor",
    "torch.fx.experimental.symbolic_shapes",
    "torch._export",
    "torch.export",
    "torch._functorch",
)
_WARNING_SOURCES = (r"torch(\.|$)", r"copyreg$")
"""Modules whose warnings are about torch's own insides; the second is where a deep copy of torch's specs warns from."""
_FLAT_WEIGHTS = r"The tensor attributes? .*\._flat_weights\["
"""What torch says of every recurrent layer, whose list of weights it fills while it exports."""


@contextmanager
def silence() -> Iterator[None]:
    """Hold back warnings that torch raises about itself and lines that it logs. The model's own still come through."""
    loggers = [logger for logger in map(logging.getLogger, _LOGGERS) if not logger.disabled]
    for logger in loggers:
        logger.disabled = True
    try:
        with warnings.catch_warnings():
            for source in _WARNING_SOURCES:
                warnings.filterwarnings("ignore", module=source)
            warnings.filterwarnings("ignore", _FLAT_WEIGHTS)
            yield
    finally:
        for logger in loggers:
            logger.disabled = False
