"""The shape of the tree: what is packaged, who may import whom, and what an import loads."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Iterator
from pathlib import Path
from shutil import copy, copytree, ignore_patterns
from typing import cast

import pytest
import tomli

ROOT = Path(__file__).resolve().parents[1]
LINKS = ROOT / "tests" / "typing" / "tersor"

# Folder -> the folders it may import, itself left out.
LAYERS: dict[str, frozenset[str]] = {
    "ir": frozenset(),
    "passes": frozenset({"ir"}),
    "backends": frozenset({"ir", "passes"}),
    "frontends": frozenset({"ir"}),
    "tersor": frozenset({"ir", "passes", "backends", "frontends"}),
}
MAPPED = frozenset(LAYERS) - {"tersor"}
USERS = frozenset({"tests", "examples", "benchmarks"})
HEAVY = (
    "accelerate",
    "distributed",
    "hypothesis",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "sklearn",
    "tensorrt",
    "tensorrt_rtx",
    "transformers",
)


def module_name(path: Path) -> str:
    """The dotted name under which a file of the product is imported."""
    folder, *rest = path.relative_to(ROOT).with_suffix("").parts
    parts = ["tersor", *([] if folder == "tersor" else [folder]), *rest]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def python_files(*folders: str) -> list[Path]:
    found = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return sorted(path for path in found if not path.is_relative_to(LINKS))


def found_packages() -> set[str]:
    return {module_name(path) for path in python_files(*LAYERS) if path.name == "__init__.py"}


def listed_packages() -> list[str]:
    settings = tomli.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return cast("list[str]", settings["tool"]["setuptools"]["packages"])


def layer_of(module: str) -> str:
    """The folder a `tersor...` module lives in."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in MAPPED else "tersor"


def backend_of(module: str) -> str | None:
    """The target a module belongs to; None for what all backends share, which has no backend.py."""
    parts = module.split(".")
    target = parts[2] if len(parts) > 2 and parts[1] == "backends" else None
    return target if target in targets() else None


def targets() -> set[str]:
    """The folders of backends that are targets of their own."""
    return {path.parent.name for path in (ROOT / "backends").glob("*/backend.py")}


# -- Imports ---------------------------------------------------------------------------------------


def imports(tree: ast.AST, package: str) -> Iterator[tuple[ast.stmt, str, bool]]:
    """Every module that the code imports, wherever it does so: (statement, absolute name, written relative)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name, False
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                # `from . import x` imports x; `from .x import name` may import a module `name` of the package x.
                yield node, f"{base}.{alias.name}", node.level > 0


def broken_rule(package: str, target: str, relative: bool) -> str | None:
    """Why a module of `package` may not import `target`; None where it may."""
    head = target.split(".")[0]
    layer, wanted = layer_of(package), layer_of(target)
    if head in MAPPED and not relative:
        return f"bare {head!r} is not a package: import tersor.{head}"
    if head in USERS and not relative:
        return f"the product does not import {head}"
    if head != "tersor":
        return f"{target!r} leaves the package" if relative else None
    if wanted == layer:
        mine, theirs = backend_of(package), backend_of(target)
        if mine and theirs and mine != theirs:
            return f"backend {mine!r} imports backend {theirs!r}: what two share moves to backends/ or becomes a pass"
        return None if relative else "imports inside a folder are relative"
    if relative:
        return f"imports across folders are absolute: tersor.{wanted}"
    return None if wanted in LAYERS[layer] else f"{layer} may not import {wanted}"


def violations(source: str, package: str) -> list[str]:
    """What is wrong with the imports of one file of `package`, a line each."""
    found = imports(ast.parse(source), package)
    reasons = ((node.lineno, target, broken_rule(package, target, relative)) for node, target, relative in found)
    return [f"line {line}: {target}: {reason}" for line, target, reason in reasons if reason]


def test_layers_import_one_way() -> None:
    wrong = []
    for path in python_files(*LAYERS):
        name = module_name(path)
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        wrong += [f"{path.relative_to(ROOT)}, {line}" for line in violations(path.read_text(encoding="utf-8"), package)]
    assert not wrong, "\n".join(wrong)


def test_nothing_imports_a_folder_by_its_bare_name() -> None:
    wrong = []
    for path in python_files(*sorted(USERS)):
        for node, target, relative in imports(ast.parse(path.read_text(encoding="utf-8")), "nowhere"):
            if not relative and target.split(".")[0] in MAPPED:
                wrong.append(f"{path.relative_to(ROOT)}, line {node.lineno}: {target}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("tersor.ir", "from tersor.passes import Pass"),
        ("tersor.ir", "from ..passes import Pass"),
        ("tersor.ir", "from .. import passes"),
        ("tersor.ir", "import tersor"),
        ("tersor.ir", "from tersor import ir"),
        ("tersor.ir", "from tersor.ir.stage import Stage"),
        ("tersor.ir", "import ir.stage"),
        ("tersor.ir", "from ... import torch"),
        ("tersor.ir", "from tests import models"),
        ("tersor.passes", "def run():\n    from tersor.backends import lower"),
        ("tersor.passes", "if TYPE_CHECKING:\n    import tersor.frontends.onnx"),
        ("tersor.passes", "from passes.fold_batchnorm import FoldBatchNorm"),
        ("tersor.frontends", "from tersor.passes import Pass"),
        ("tersor.frontends", "from tersor import trace"),
        ("tersor.backends", "from tersor.frontends import trace"),
        ("tersor", "from .ir import Program"),
        ("tersor", "from tersor.cli import main"),
    ],
)
def test_a_wrong_import_is_found(package: str, source: str) -> None:
    assert violations(source, package)


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("tersor.ir", "import torch\nfrom .stage import Stage\nfrom . import stage"),
        ("tersor.passes", "from tersor.ir import Program\nfrom tersor import ir\nimport tersor.ir.stage"),
        ("tersor.backends.onnxruntime", "from ..registry import find\nfrom .. import registry\nimport onnxruntime"),
        ("tersor.backends", "from .onnxruntime.backend import OnnxRuntime"),
        ("tersor.frontends", "from tersor.ir import Program"),
        (
            "tersor",
            "from .cli import main\nfrom tersor.ir import Program\nfrom tersor.backends.onnxruntime import emit",
        ),
        ("tersor.recipes", "from .. import cli\nfrom tersor.passes import Pass"),
    ],
)
def test_a_right_import_is_allowed(package: str, source: str) -> None:
    assert violations(source, package) == []


def test_backends_never_import_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "targets", lambda: {"neon", "hls"})
    assert violations("from ..hls.emit import emit", "tersor.backends.neon")
    assert violations("from .. import hls", "tersor.backends.neon")
    assert violations("from ..neon.emit import emit", "tersor.backends.neon") == []
    assert violations("from . import hls", "tersor.backends") == []
    assert violations("from ..onnx.emit import emit_model", "tersor.backends.neon") == []


def test_importing_tersor_loads_no_target(tmp_path: Path) -> None:
    """Nor do the targets' own modules, before a target is asked for more than what is missing."""
    code = f"""
        import sys, tersor
        from tersor.backends.registry import TARGETS
        print(*sorted(set({HEAVY!r}) & set(sys.modules)))
        for name in TARGETS.names():
            TARGETS.find(name).missing()
            print(name, *sorted(set({HEAVY!r}) & set(sys.modules)))
    """
    code = textwrap.dedent(code)
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["", *sorted(targets())]


# -- Packaging -------------------------------------------------------------------------------------


def test_listed_packages_are_the_packages_on_disk() -> None:
    listed = listed_packages()
    assert listed == sorted(set(listed)), "tool.setuptools.packages in pyproject.toml: sorted, none twice"
    assert set(listed) == found_packages()


def test_every_module_is_in_a_package() -> None:
    loose = {path.parent for path in python_files(*LAYERS) if not (path.parent / "__init__.py").exists()}
    assert not loose, f"folders with modules and no __init__.py: {sorted(map(str, loose))}"


@pytest.mark.parametrize("folder", LAYERS)
def test_each_folder_is_marked_as_typed(folder: str) -> None:
    assert (ROOT / folder / "py.typed").is_file()


def test_the_wheel_holds_every_file(tmp_path: Path) -> None:
    # setuptools builds in the source tree, so it gets a copy.
    for folder in LAYERS:
        copytree(ROOT / folder, tmp_path / folder, ignore=ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        copy(ROOT / name, tmp_path / name)
    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    run = subprocess.run([sys.executable, "-c", build], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    (wheel,) = (tmp_path / "dist").glob("tersor-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = set()
    for folder in LAYERS:
        prefix = "tersor" if folder == "tersor" else f"tersor/{folder}"
        files = (path for path in (tmp_path / folder).rglob("*") if path.is_file())
        expected |= {f"{prefix}/{path.relative_to(tmp_path / folder).as_posix()}" for path in files}
    assert packed == expected


# -- Typing links ----------------------------------------------------------------------------------


def test_the_type_checker_sees_every_module() -> None:
    front_door = [
        path for path in (ROOT / "tersor").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    ]
    expected = {path.name: path for path in [*front_door, *(ROOT / folder for folder in MAPPED)]}
    assert {link.name for link in LINKS.iterdir() if link.name != "__pycache__"} == set(expected), "run `make links`"
    for name, real in expected.items():
        link = LINKS / name
        assert link.is_symlink(), f"{link}: run `make links`"
        assert not link.readlink().is_absolute(), f"{link}: run `make links`"
        assert link.resolve(strict=True) == real


# -- Portability -----------------------------------------------------------------------------------

# A path of one machine, a way out of the checkout, the host of a package index: none of them means anything elsewhere.
PRIVATE = re.compile(
    r"(?<![\w.:/~$}])/(?:home|root|work|opt|srv|mnt|Users)/\w"
    + r"|(?<!\w)(?:\.\./)+shared\b"
    + r"|\bpypi\.org\b|pythonhosted|\bdownload\.pytorch\b",
    re.IGNORECASE,
)
TEXT = frozenset(
    {".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".json", ".cfg", ".sh", ".c", ".h", ".cpp", ".in", ""}
)


def text_files() -> Iterator[Path]:
    folders = [*LAYERS, *USERS, "docs", ".ci"]
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if "__pycache__" not in path.parts]
    for path in [*files, *ROOT.iterdir()]:
        if path.is_file() and path.suffix in TEXT and not path.is_relative_to(LINKS):
            yield path


def test_no_file_names_a_place_outside_the_checkout() -> None:
    wrong = []
    for path in text_files():
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if PRIVATE.search(line) and path != Path(__file__).resolve():
                wrong.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "text", ["see " + "/ho" + "me/me/x", "cd .." + "/shared/tools", "open('" + "/wo" + "rk/main/a')"]
)
def test_a_private_path_is_found(text: str) -> None:
    assert PRIVATE.search(text)


@pytest.mark.parametrize(
    "text", ["https://example.com/home/page", "a/work/b", "`backends/shared.py`", "make PYTHON=/path/to"]
)
def test_an_ordinary_path_is_allowed(text: str) -> None:
    assert not PRIVATE.search(text)
