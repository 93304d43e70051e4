"""Reading a plan: the program text that it carries for its kernels, found in its bytes.

A plan built with detailed verbosity holds, for each part that the graph compiler made, a text of this form:

    header {...}
    descriptors {
      tensor={ const_payload_size=3136 dims={ 16 4 7 7 } name="w_dconst" ... type=int8 }
      tensor={ dims={ "batch.1" 4 32 32 } name="x_q" ... type=int8 }
    }
    main {
      corrltn={ name="conv2d_U54" output={"y" } input={"x_q" "w_dconst" } ... layers="[ONNX Layer: conv2d]" }
    }

It says which types every kernel reads, without a GPU to deserialize the plan. The form is not documented: it was read
from engines of TensorRT for RTX 1.7. Where a plan has no such text, `kernels_of_plan` finds nothing, and the audit says
that it could not be read; what the inspector says of an engine on a GPU is read by `inspector.py`.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from .kernels import LAYER, Kernel, Port, dtype_of

_MODULE = re.compile(
    rb"header \{\n(?P<header>.*?)\ndescriptors \{\n(?P<tensors>.*?)\n\}\nmain \{\n(?P<main>.*?)\n\}\n", re.S
)
_TENSOR = re.compile(r"^  (?:sub_)?tensor=\{ (.*) \}$", re.M)
_STEP = re.compile(r'^  ([a-z_0-9]+)=\{ name=(?:"([^"]*)"|(\S+))(.*?)(?=^  [a-z_0-9]+=\{ |^ ?label |\Z)', re.M | re.S)
_NESTED = b"region = { name=runtime-fusion-consts"
"""A text inside another: the steps of one kernel, which the outer text names with its types."""
_SCALARS = frozenset({"tensor", "sub_tensor", "copy", "memset", "assert", "shape_call"})


def kernels_of_plan(path: Path) -> tuple[Kernel, ...]:
    """The kernels of a serialized engine that name ONNX nodes, in order; empty where it holds no such text."""
    if not path.stat().st_size:
        return ()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        modules = [match for match in _MODULE.finditer(data) if _NESTED not in match["header"]]
        texts = [(match["tensors"].decode("latin1"), match["main"].decode("latin1")) for match in modules]
    found = [kernel for tensors, main in texts for kernel in _kernels(_ports(tensors), main)]
    return tuple(dict.fromkeys(found))


def _ports(text: str) -> dict[str, Port]:
    ports = {}
    for match in _TENSOR.finditer(text):
        port = _port(match[1])
        ports[port.name] = port
    return ports


def _port(text: str) -> Port:
    dims = re.search(r"dims=\{ (.*?) \}", text)
    sizes = re.findall(r'"[^"]*"|\S+', dims[1]) if dims else []
    stored = re.search(r"const_payload_size=(\d+)", text)
    return Port(
        name=_field(r'name="([^"]*)"', text),
        dtype=dtype_of(_field(r"type=(\S+)", text)),
        shape=tuple(int(size) if size.isdigit() else None for size in sizes),
        stored=int(stored[1]) if stored else None,
    )


def _field(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found[1] if found else ""


def _kernels(ports: Mapping[str, Port], text: str) -> Iterator[Kernel]:
    for match in _STEP.finditer(text):
        kind, name, rest = match[1], match[2] or match[3], match[4]
        layers = tuple(dict.fromkeys(LAYER.findall(rest)))
        if kind in _SCALARS or not layers:
            continue
        inputs = _names(rest, "input_args") or _names(rest, "input")
        outputs = _names(rest, "output_args") or _names(rest, "output")
        yield Kernel(kind, name, _known(ports, inputs), _known(ports, outputs), layers)


def _names(text: str, key: str) -> list[str]:
    found = re.search(rf" {key}=\{{(.*?)\}}(?= |$)", text, re.S)
    return re.findall(r'"([^"]*)"', found[1]) if found else []


def _known(ports: Mapping[str, Port], names: list[str]) -> tuple[Port, ...]:
    return tuple(ports[name] for name in names if name in ports)
