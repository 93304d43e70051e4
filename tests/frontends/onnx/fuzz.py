"""Mutated ONNX files by the thousand, each loaded under a limit of time and memory: run by `test_hostile_files.py`.

    python tests/frontends/onnx/fuzz.py FIRST COUNT [SECONDS]

loads the mutants FIRST, FIRST + 1, ... and prints a line of JSON for each that did what no file may make us do, then a
line of counts. The number of a mutant is all that is needed to see it again:

    python tests/frontends/onnx/fuzz.py 1234 1 --keep FOLDER

A mutant is loaded in a forked child, so that a crash, a hang or a memory blow-up ends the child and not the run.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

import torch
from mutants import mutant  # type: ignore[import-not-found]  # beside this file, which runs as a script
from seeds import seeds  # type: ignore[import-not-found]  # as above
from torch import Tensor

from tersor.frontends.onnx import budget
from tersor.frontends.onnx.load import load_onnx
from tersor.ir.errors import ArchiveError, TersorError, TraceError
from tersor.ir.program import Program
from tersor.ir.shapes import KEY

SECONDS = 10
MEMORY = 1 << 30
LARGEST_RUN = 1 << 20
BATCH = 64

# -- Judging -----------------------------------------------------------------------------------------------------------


def judge(index: int, folder: Path) -> tuple[str, str | None]:
    """What became of a mutant, and what is wrong with that."""
    path = folder / f"m{index}.onnx"
    path.write_bytes(mutant(index))
    try:
        program = load_onnx(path)
    except (ArchiveError, TraceError) as error:
        return "refused", complaint(error, path)
    except BaseException:  # noqa: BLE001  # whatever it is, it is to be reported
        return "broken", traceback.format_exc(limit=-6)
    finally:
        path.unlink()
    try:
        program.verify()
    except BaseException:  # noqa: BLE001  # as above
        return "broken", f"does not verify: {traceback.format_exc(limit=-6)}"
    return ("loaded", None) if index % 4 else run(program)


def complaint(error: TersorError, path: Path) -> str | None:
    """What an error lacks: the file, the node where one was being imported, or a cause that we would name."""
    said = str(error)
    if str(path) not in said:
        return f"the file is not named: {said}"
    if said.count(str(path)) > 3:
        return f"the file is named too often: {said}"
    frames = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
    if "_within" in frames and error.node is None:
        return f"the node is not named: {said}"
    spent = [word for word in ("allocate", "MemoryError", "recursion") if word in said]
    if spent:
        return f"more was tried than should be: {said}"
    return None


def run(program: Program) -> tuple[str, str | None]:
    """The program on inputs made up, where it is small: torch may refuse the data, and may do nothing else."""
    sizes: list[Any] = [item.numel() for node in program.graph.nodes for item in tensors_of(node.meta.get(KEY))]
    shapes = [[size if isinstance(size, int) else 2 for size in spec.shape] for spec in program.signature.inputs]
    sizes += map(prod, shapes)
    if sum(size if isinstance(size, int) else 64 for size in sizes) > LARGEST_RUN:
        return "loaded, too large to run", None
    specs = zip(shapes, program.signature.inputs, strict=True)
    inputs = [torch.ones(shape).to(spec.dtype) for shape, spec in specs]
    try:
        program.run(inputs)
    except (RuntimeError, IndexError, ValueError, TypeError, NotImplementedError):
        return "run, refused by torch", None
    except BaseException:  # noqa: BLE001  # as above
        return "broken", f"does not run: {traceback.format_exc(limit=-6)}"
    return "run", None


def tensors_of(value: Any) -> list[Tensor]:
    items = value if isinstance(value, tuple | list) else [value]
    return [item for item in items if isinstance(item, Tensor)]


# -- Children that may die ---------------------------------------------------------------------------------------------


def child(first: int, stop: int, folder: Path, pipe: int) -> None:
    """Load mutants and write a line for each into the pipe. Timers are not caught: native code would not see it.

    One counts the time of the processor, which others on the machine do not take; the other finds who sleeps.
    """
    warnings.simplefilter("ignore")
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    trace = (folder / "trace.txt").open("w")
    faulthandler.enable(trace, all_threads=False)
    faulthandler.register(signal.SIGPROF, trace, all_threads=False, chain=True)
    for index in range(first, stop):
        started = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.alarm(10 * SECONDS)
        kind, wrong = judge(index, folder)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        took = time.process_time() - started
        line = json.dumps({"mutant": index, "kind": kind, "wrong": wrong, "seconds": round(took, 3)})
        os.write(pipe, f"{line}\n".encode())


def batch(first: int, stop: int, folder: Path) -> list[dict[str, Any]]:
    """What became of some mutants, up to one that ended its child."""
    reader, writer = os.pipe()
    process = os.fork()
    if not process:
        try:
            child(first, stop, folder, writer)
        except BaseException:  # noqa: BLE001  # told by the mutant that it did not get to
            (folder / "trace.txt").write_text(traceback.format_exc())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as lines:
        found = [json.loads(line) for line in lines]
    _, status = os.waitpid(process, 0)
    if len(found) < stop - first:
        ended = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"exit {status}"
        where = (folder / "trace.txt").read_text()
        found.append({"mutant": first + len(found), "kind": "ended", "wrong": f"{ended}\n{where}", "seconds": 0})
    return found


def results(first: int, count: int, seconds: float, folder: Path) -> Iterator[dict[str, Any]]:
    """What became of each mutant, until all are done or the time is over."""
    index, until = first, time.monotonic() + seconds
    while index < first + count and time.monotonic() < until:
        for result in batch(index, min(index + BATCH, first + count), folder):
            index = result["mutant"] + 1
            yield result


def furnish(folder: Path) -> None:
    """What external data may name beside a mutant."""
    (folder / "weights.bin").write_bytes(bytes(64))
    (folder / "folder").mkdir()
    os.mkfifo(folder / "fifo")
    (folder / "link.bin").symlink_to("/etc/passwd")
    (folder / "loop.bin").symlink_to("loop.bin")
    with (folder / "sparse.bin").open("wb") as file:
        file.truncate(3 << 30)


def warm(folder: Path) -> None:
    """Load whole models first: what torch imports on the way is then there for every child, and not in each again."""
    path = folder / "seed.onnx"
    for model in seeds()[0]:
        path.write_bytes(model)
        with warnings.catch_warnings(), suppress(TersorError):
            warnings.simplefilter("ignore")
            load_onnx(path).verify()
    path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("seconds", type=float, nargs="?", default=float("inf"))
    parser.add_argument("--keep", type=Path, help="write the mutants into this folder and load nothing")
    parser.add_argument("--work", type=int, help="what an import may take, less than by default, to load more of them")
    options = parser.parse_args()
    budget._FREE_WORK = options.work or budget._FREE_WORK
    if options.keep:
        for index in range(options.first, options.first + options.count):
            (options.keep / f"m{index}.onnx").write_bytes(mutant(index))
        return
    mutant(options.first)  # makes the seeds, which every child then has
    counts: Counter[str] = Counter()
    slowest = (0.0, 0)
    with tempfile.TemporaryDirectory() as name:
        furnish(Path(name))
        warm(Path(name))
        for result in results(options.first, options.count, options.seconds, Path(name)):
            counts[result["kind"]] += 1
            slowest = max(slowest, (result["seconds"], result["mutant"]))
            if result["wrong"]:
                print(json.dumps(result), flush=True)
    print(json.dumps({"counts": counts, "slowest": slowest}))


if __name__ == "__main__":
    sys.setrecursionlimit(1000)
    main()
