"""The builder, run in a process of its own, and its errors told in the program's terms."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import fx

from tersor.ir.errors import LoweringError
from tersor.ir.program import Program

SHOWN = 2000
"""Characters of a message that an error carries."""

_HINTS = (
    (
        "fp32 gemm is not supported",
        "Turing has fewer kernels: name 8.0 or newer",
    ),
    ("hw-specific datatypes", "name newer compute capabilities: float8 takes 8.9"),
    ("does not know sm", "see the builder's documentation for the capabilities that it knows"),
    ("out of memory", "give the builder more memory, or a smaller profile"),
    ("workspace", "raise workspace"),
    ("optimization profile", "give profiles=({'name': Sizes(least, best, most)},) that the program takes"),
)


def run_build(program: Program, folder: Path) -> dict[str, Any]:
    """Run `build_engine.py` in the folder; what it found.

    Raises LoweringError with the builder's own words, the node that they are about and the user's line; also where
    the builder crashed. Interrupting ends the builder as well.
    """
    result_file = folder / "result.json"
    done = subprocess.run(
        [sys.executable, str(folder / "build_engine.py")], capture_output=True, text=True, errors="replace", check=False
    )
    if not result_file.is_file():
        found = _last(done.stderr) or f"exit code {done.returncode}"
        hint = "too little memory ends it with -9; else run build_engine.py by hand" if done.returncode < 0 else None
        raise LoweringError("the TensorRT builder crashed", found=found, hint=hint)
    result: dict[str, Any] = json.loads(result_file.read_text())
    if result["errors"]:
        raise _error(program, result["errors"], done.stderr)
    return result


def _error(program: Program, errors: Sequence[Mapping[str, str]], stderr: str) -> LoweringError:
    """One error for the first complaint, whose node is looked for in the program."""
    first = errors[0]
    text = "\n".join(dict.fromkeys(error["message"] for error in errors))[:SHOWN]
    node = find_node(program, first)
    what = {
        "parse": f"TensorRT's parser does not take {first.get('operator') or 'this model'}",
        "profile": "TensorRT does not take the optimization profile",
    }.get(first["stage"], "TensorRT could not build an engine")
    spoken = f"{text}\n{_last(stderr)}".lower()
    hint = next((hint for sign, hint in _HINTS if sign in spoken), None)
    return LoweringError(what, node=node, found=text, hint=hint)


def find_node(program: Program, error: Mapping[str, str]) -> fx.Node | None:
    """The program's node of a complaint: by the ONNX node that it is about, else by a name that it quotes."""
    nodes: dict[str, fx.Node] = {node.name: node for node in program.graph.nodes}
    quoted = re.findall(r"[\w./]+", error["message"])
    for name in (error.get("node", ""), *quoted):
        found = nodes.get(name.split("/")[0])
        if found is not None and found.op == "call_function":
            return found
    return None


def _last(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return "\n".join(lines[-3:])[:SHOWN]
