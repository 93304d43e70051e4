"""Where in the user's model a node comes from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import fx

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>[^\n]+)\n\s+(?P<code>[^\n]*)')
_LIBRARIES = re.compile(r"[/\\]torch[/\\](nn|fx|export|_|functional)")
_NOBODYS = re.compile(r"^<|[/\\]frontends[/\\]flat_model\.py$")
"""Generated code, and what the frontend wraps a model in."""
_INSTALLED = re.compile(r"^.*[/\\](site|dist)-packages[/\\]")
"""What is left out of the path of a library's own line, which is shown where a model has no line of its own."""
KEY = "origin"


@dataclass(frozen=True)
class Origin:
    """A place in the user's model: source file and line, the line's text, and the path of the module that ran it.

    For a model read from a file that has no source, `file` is that file and `module` the name that the node had in it.
    """

    file: str = ""
    line: int = 0
    code: str = ""
    module: str = ""

    def __str__(self) -> str:
        file = _INSTALLED.sub("", self.file)
        place = f"{file}:{self.line}" if self.line else file
        within = f"in {self.module}" if self.module else ""
        text = ", ".join(part for part in (place, within) if part)
        return f"{text}: {self.code}" if self.code else text

    @classmethod
    def of(cls, node: fx.Node) -> Origin | None:
        """The origin that a node carries; None where there is none, or one that names no place."""
        origin = node.meta.get(KEY)
        return origin if isinstance(origin, cls) and str(origin) else None

    @classmethod
    def from_export(cls, meta: Mapping[str, Any]) -> Origin | None:
        """Read the stack trace and module stack that torch.export leaves in `meta`.

        The innermost frame outside torch is the line that a person wrote; where there is none, the innermost of all.
        """
        found = _FRAME.finditer(meta.get("stack_trace") or "")
        frames = [frame for frame in found if not _NOBODYS.search(frame["file"])]
        own = [frame for frame in frames if not _LIBRARIES.search(frame["file"])]
        modules = [path for path, _ in (meta.get("nn_module_stack") or {}).values() if isinstance(path, str)]
        module = modules[-1] if modules and not modules[-1].startswith("_empty") else ""
        if not frames:
            return cls(module=module) if module else None
        frame = (own or frames)[-1]
        return cls(frame["file"], int(frame["line"]), frame["code"].strip(), module)
