"""What torch.export said, as an error that shows the user's line and a way out."""

from __future__ import annotations

import re
import sysconfig
import traceback
from pathlib import Path

import torch
from torch import nn

import tersor.ir
from tersor.ir.errors import TraceError

_TORCH = str(Path(torch.__file__).parent)
_OURS = (str(Path(__file__).parent), str(Path(tersor.ir.__file__).parent))
_INSTALLED = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))

_SHAPES = (
    r"cannot be multiplied|same reduction dim|[Ss]ize of tensor|must match|[Ee]xpected .*(to have|dtype|channels)|"
    r"expected input|not broadcast|[Ss]hape.*(invalid|mismatch)|is invalid for input|incompatible|dtype"
)
_DATA_DEPENDENT = (
    r"data-dependent|GuardOnDataDependent|Could not guard|Dynamic control flow|\.item\(\)|_local_scalar_dense"
)
_CALLED_WRONGLY = r"missing .*required|unexpected keyword|takes .* positional|got multiple values"
_DEVICES = r"two different devices|on the same device|Device Propagation"
_NO_SHAPE_FUNCTION = r"no fake impl|Unsupported operator|no meta"
_HINTS: tuple[tuple[str, str], ...] = (
    (_DATA_DEPENDENT, "a Python branch or size depends on a tensor's values: write it with torch.where or masks"),
    (_NO_SHAPE_FUNCTION, "register a shape function with torch.library.register_fake"),
    (_DEVICES, "put the example and the model on one device: example.to(device), or model.to(device)"),
    (_CALLED_WRONGLY, "give args and kwargs as the model is called"),
    (_SHAPES, "check the example's shapes and dtypes"),
)


def explain(error: Exception, model: nn.Module) -> TraceError:
    """The TraceError for what `model`, or torch.export on it, raised."""
    message = str(error).strip() or type(error).__name__
    hint = next((hint for pattern, hint in _HINTS if re.search(pattern, message)), None)
    return TraceError(
        f"{type(model).__name__} cannot be traced: {message.splitlines()[0]}",
        found=_users_line(error, message),
        hint=hint or "check that model(*args, **kwargs) runs by itself; the cause is below",
    )


def _users_line(error: BaseException, message: str) -> str | None:
    """`file:line, in function: code` of the frame that a person wrote, from the traceback or torch's own report.

    That is the innermost outside every installed package; where there is none, the innermost outside torch.
    """
    frames = traceback.extract_tb(error.__traceback__)
    places = [(frame.filename, str(frame.lineno), frame.name, frame.line or "") for frame in frames]
    places = re.findall(r'File "([^"]+)", line (\d+), in (\S+)\n\s*(.*)', message) + places
    written = [place for place in places if not place[0].startswith(("<", _TORCH, *_OURS))]
    own = [place for place in written if not place[0].startswith(_INSTALLED)]
    if not written:
        return None
    file, line, function, code = (own or written)[-1]
    return f"{file}:{line}, in {function}: {code}"
