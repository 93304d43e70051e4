"""A program of the integer stage as a C library."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch

from tersor.ir.program import Program
from tersor.ir.shapes import KEY
from tersor.ir.sparsity import NM, Channel, Pattern

from ..base import AuditRow, LoweringReport
from ..batching import batched
from ..draft import draft_folder
from ..manifest import write_manifest
from ..sparsity import sparsity_notes
from .artifact import NeonArtifact
from .backend import BLOCKS, Neon
from .blob import Blob
from .kernel_names import write_kernels
from .machine import BUILDS
from .memory import place
from .plan import Planner
from .rules import RULES
from .source import body
from .steps import Convolution, MatMul, Step
from .template_values import Variant, template_values

TEMPLATES = Path(__file__).parent / "templates"


def emit(program: Program, out: Path, options: Neon) -> NeonArtifact:
    """Write the library into `out`: every file under a temporary name first, the manifest last."""
    variants = [variant_of(program, isa) for isa in options.isas]
    blob, files, constants = Blob(), {}, {}
    for variant in variants:
        blob.taken.clear()
        files[f"{options.library}_{variant.isa}.c"] = _variant_source(options.library, variant, blob)
        constants[variant.isa] = sum(blob.taken.values())
    values = template_values(program, options.library, variants, blob, constants)
    for template in sorted(TEMPLATES.iterdir()):
        name = template.name.replace("model.", f"{options.library}.")
        files[name] = _filled(template.read_text(), values)
    with draft_folder(out) as draft:
        written = _write(draft, files, blob)
        report = _report(program, variants, constants, {path.name: path.stat().st_size for path in written})
        _retire(out, draft, options)
        final = [_move(path, draft, out) for path in written]
    shutil.rmtree(out / BUILDS, ignore_errors=True)
    artifact = NeonArtifact(out, batched(program.signature, program.outputs), report)
    write_manifest(out, artifact.signature, report, [path for path in final if path.parent == out])
    return artifact


def variant_of(program: Program, isa: str) -> Variant:
    """The plan for one instruction set, and where its buffers lie."""
    plan = Planner(program, isa, BLOCKS[isa], RULES).plan()
    return Variant(isa, BLOCKS[isa], plan, place(plan))


def _variant_source(name: str, variant: Variant, blob: Blob) -> str:
    context = variant.context(blob)
    steps = [_function(index, step, body(context, step)) for index, step in enumerate(variant.plan.steps)]
    kernels = {step.kernel for step in variant.plan.steps if isinstance(step, Convolution)}
    kernels |= {"matmul" for step in variant.plan.steps if isinstance(step, MatMul)}
    listed = ", ".join(f"step_{index}" for index in range(len(steps)))
    return "\n".join(
        [
            f"/* {name}: its layers for {variant.isa}. */",
            "#include <string.h>",
            "",
            '#include "tersor_model.h"',
            "",
            *_kernel_names(variant.isa, sorted(kernels)),
            *steps,
            f"static tersor_step *const steps[] = {{{listed}}};",
            "",
            f"extern const tersor_variant {name}_{variant.isa};",
            f"const tersor_variant {name}_{variant.isa} = "
            f'{{"{variant.isa}", steps, {len(steps)}, {variant.arena.size}}};',
            "",
        ]
    )


def _kernel_names(isa: str, kernels: Iterable[str]) -> list[str]:
    depthwise = f"tersor_depthwise_c{BLOCKS[isa]}"
    native = {kernel: f"tersor_conv_{kernel}_{isa}" for kernel in kernels} | {"depthwise": f"{depthwise}_neon"}
    dot = "neon" if isa == "neon" else "dotprod"
    native |= {"dense_vector": f"tersor_linear_dense_{dot}", "4x4_vector": "tersor_linear_4x4_dotprod"}
    native |= {"matmul": f"tersor_matmul_{dot}"}
    portable = {kernel: f"tersor_conv_{kernel}_portable" for kernel in kernels}
    portable |= {"dense": f"tersor_conv_dense_{isa}_portable", "depthwise": f"{depthwise}_portable"}
    portable |= {"matmul": "tersor_matmul_portable", "4x4_vector": "tersor_conv_4x4_portable"}
    portable |= {"dense_vector": f"tersor_conv_dense_{dot}_portable"}
    defined = [[f"#define KERNEL_{k} {names[k]}" for k in kernels] for names in (native, portable)]
    layers = [f"#define LAYER(name) name##_{kind}" for kind in ("neon", "portable")]
    return [
        "#if TERSOR_NATIVE", layers[0], *defined[0], "#else", layers[1], *defined[1], "#endif",
        "#define KERNEL(name) KERNEL_##name", "",
    ]  # fmt: skip


def _function(index: int, step: Step, lines: list[str]) -> str:
    text = "\n".join(lines)
    unused = [
        name for name in ("weights", "arena", "inputs", "outputs", "share") if not re.search(rf"\b{name}\b", text)
    ]
    silenced = [f"    {', '.join(f'(void){name}' for name in unused)};"] if unused else []
    return "\n".join(
        [
            f"/* {type(step).__name__}: %{step.node} */",
            f"static void step_{index}(const int8_t *weights, int8_t *arena, const void *const *inputs,",
            "                   void *const *outputs, tersor_share share)",
            "{",
            *silenced,
            text,
            "}",
            "",
        ]
    )


def _filled(text: str, values: dict[str, str]) -> str:
    return re.sub(r"@(\w+)@", lambda match: values[match[1]], text)


def _write(folder: Path, files: dict[str, str], blob: Blob) -> list[Path]:
    (folder / "kernels").mkdir()
    written = [folder / "weights.bin"]
    written[0].write_bytes(blob.to_bytes())
    for name, text in files.items():
        written.append(folder / name)
        written[-1].write_text(text)
    return [*written, *write_kernels(folder / "kernels")]


def _retire(out: Path, draft: Path, options: Neon) -> None:
    """Take the sources of an earlier lowering away: the build files compile all that lies there."""
    if (out / "kernels").is_dir():
        (out / "kernels").rename(draft / "replaced")
    for isa in BLOCKS.keys() - set(options.isas):
        (out / f"{options.library}_{isa}.c").unlink(missing_ok=True)


def _move(path: Path, draft: Path, out: Path) -> Path:
    target = out / path.relative_to(draft)
    target.parent.mkdir(exist_ok=True)
    return path.replace(target)


def _called(step: Step, isa: str) -> str:
    """The kernel of a convolution, else what a step is called."""
    if isinstance(step, Convolution):
        return f"{step.kernel}_{isa}"
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(step).__name__).lower()


def _report(
    program: Program, variants: list[Variant], constants: dict[str, int], files: dict[str, int]
) -> LoweringReport:
    best = variants[-1]
    rows = [
        AuditRow(step.node, _called(step, best.isa), "int8", step.macs, getattr(step, "reason", ""))
        for step in best.plan.steps
    ]
    notes = [
        f"{v.isa}: {len(v.plan.steps)} steps, arena of {v.arena.size} bytes, constants of {constants[v.isa]} bytes"
        for v in variants
    ]
    notes += [_output_note(node.meta[KEY]) for node in program.outputs]
    notes += sparsity_notes(program, _treatment)
    return LoweringReport("neon", tuple(rows), files, tuple(notes))


def _output_note(value: torch.Tensor) -> str:
    """What the artifact reads outputs by: sizes, and the type where it is no float32."""
    sizes, dtype = "x".join(str(int(size)) for size in value.shape), str(value.dtype).removeprefix("torch.")
    return f"output {sizes}" if value.dtype is torch.float32 else f"output {sizes} {dtype}"


def _treatment(pattern: Pattern) -> str:
    if isinstance(pattern, NM):
        return "stored whole and computed dense: picking activations for each product takes the gain back"
    if isinstance(pattern, Channel):
        return "skipped where they fill whole blocks; PruneChannels takes them out"
    return "blocks of zeros are skipped where that costs less; the audit names the kernel and the reason"
