"""What torch.export said, as an error that shows the user's line and a way out."""

from __future__ import annotations

import re
import traceback

from torch import nn

from tersor.ir.errors import TraceError

_LIBRARY = re.compile(r"[/\\]site-packages[/\\]|[/\\]torch[/\\]|[/\\]frontends[/\\]|<[^>]*>|[/\\]python3[^/\\]*[/\\]")

_HINTS: tuple[tuple[str, str], ...] = (
    (
        r"data-dependent|GuardOnDataDependent|Could not guard|Dynamic control flow|\.item\(\)|aten\._local_scalar_dense",
        "a Python branch or size depends on a tensor's values: write it with torch.where or masks",
    ),
    (
        r"not a known type|register a pytree",
        "return tensors, tuples, lists, dicts or dataclasses registered with pytree",
    ),
    (
        r"ConstraintViolation|specializ|Constraints violated",
        "leave that dimension fixed, or write the model without its size",
    ),
    (
        r"missing .* required positional|unexpected keyword|takes .* positional",
        "give args and kwargs as the model is called",
    ),
    (
        r"shapes cannot be multiplied|size of tensor|Expected .* to have|expected input",
        "check the example's shape and dtype",
    ),
    (
        r"custom op|no fake impl|Unsupported operator|FakeTensor",
        "register a shape function with torch.library.register_fake",
    ),
)


def explain(error: Exception, model: nn.Module) -> TraceError:
    """The TraceError for what torch.export raised on `model`."""
    message = _message(error)
    hint = next((hint for pattern, hint in _HINTS if re.search(pattern, message)), None)
    return TraceError(
        f"{type(model).__name__} cannot be traced: {message.splitlines()[0]}",
        found=_users_line(error, message),
        hint=hint or "check that model(*args, **kwargs) runs by itself; the cause is below",
    )


def _message(error: BaseException) -> str:
    text = str(error).strip()
    return text or type(error).__name__


def _users_line(error: BaseException, message: str) -> str | None:
    """`file:line: code` of the innermost frame that is the user's own, from the traceback or torch's own report."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _LIBRARY.search(frame.filename)]
    inside = _model_frames(frames)
    for frame in reversed(own if inside else []):
        if frame in inside:
            return f"{frame.filename}:{frame.lineno}, in {frame.name}: {frame.line}"
    reported = re.findall(r'File "([^"]+)", line (\d+), in (\S+)\n\s*(.*)', message)
    for file, line, function, code in reversed(reported):
        if not _LIBRARY.search(file):
            return f"{file}:{line}, in {function}: {code}"
    return f"{inside[-1].filename}:{inside[-1].lineno}: {inside[-1].line}" if inside else None


def _model_frames(frames: traceback.StackSummary) -> list[traceback.FrameSummary]:
    """The frames below the first call of a module's forward: the model, as opposed to its caller."""
    for place, frame in enumerate(frames):
        if frame.name in ("_call_impl", "module_call_wrapper", "call_module", "forward"):
            return list(frames[place:])
    return []
