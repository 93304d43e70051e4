"""The documentation is true: its Python runs, its commands and recipes parse, its links lead somewhere."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import tomli
import yaml

from tersor.cli import cli
from tersor.passes.registry import PASSES
from tersor.recipe import build_passes
from tersor.sweeps.settings import check, settings_of
from tersor.sweeps.sweep_file import sweep_from

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(path for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")] if path.is_file())
EXECUTED = [page for page in PAGES if "```python\n" in page.read_text(encoding="utf-8")]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


class Block(NamedTuple):
    """A fenced block: its language, the line that its text begins at, and its text."""

    language: str
    line: int
    text: str


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        if found[1] in languages:
            yield Block(found[1], text.count("\n", 0, found.start(2)) + 1, found[2])


@pytest.mark.parametrize("page", EXECUTED, ids=name_of)
def test_python_blocks_run_and_print_what_follows_them(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The blocks of a page run one after another in one module, in a folder of their own.

    Text that stands right below a block is how what the block prints begins.
    """
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    monkeypatch.chdir(tmp_path)
    for block, stated in with_what_follows(page):
        # Lines are moved down so that a traceback names the page's own.
        code = compile("\n" * (block.line - 1) + block.text, str(page), "exec", dont_inherit=True)
        exec(code, module.__dict__)
        printed = capsys.readouterr().out
        assert begins_with(printed, stated), f"{page}:{block.line} prints\n{printed}"


def with_what_follows(page: Path) -> Iterator[tuple[Block, str]]:
    """Each block of Python, and the text that stands below it with nothing in between."""
    found = list(blocks(page, "python", "text"))
    for block, after in zip(found, [*found[1:], None], strict=True):
        if block.language == "python":
            end = block.line + block.text.count("\n")
            adjacent = after is not None and after.language == "text" and after.line == end + 3
            yield block, after.text if after is not None and adjacent else ""


PRINTED_NUMBER = re.compile(r"\d+(?:\.\d+)?")
TOLERANCE = 0.015
"""Processors add in different orders, so that what was trained or searched for differs a little between them."""


def begins_with(printed: str, stated: str) -> bool:
    """Whether `printed` begins with the words of `stated`, and with numbers as near as processors agree."""
    lines = stated.rstrip("\n").splitlines()
    text, wanted = "\n".join(printed.splitlines()[: len(lines)]), "\n".join(lines)
    pairs = zip(PRINTED_NUMBER.findall(text), PRINTED_NUMBER.findall(wanted), strict=False)
    return PRINTED_NUMBER.sub("0", text) == PRINTED_NUMBER.sub("0", wanted) and all(
        abs(float(found) - float(number)) <= TOLERANCE * float(number) for found, number in pairs
    )


def test_another_output_is_found() -> None:
    assert begins_with("20.0 dB of 3\nmore\n", "20.1 dB of 3\n")
    assert not begins_with("20.0 dB of 3\n", "20.5 dB of 3\n")
    assert not begins_with("20.0 dB of 3\n", "20.0 dB in 3\n")
    assert not begins_with("", "20.0 dB of 3\n")


def test_every_method_states_what_its_example_prints() -> None:
    pages = [page for page in EXECUTED if page.parent.name == "methods"]
    assert pages
    assert [page.name for page in pages if not any(stated for _, stated in with_what_follows(page))] == []


def commands() -> list[tuple[str, list[str]]]:
    """Every line of a shell block that calls tersor or make, with the page that it stands on."""
    lines = [(page, line) for page in PAGES for block in blocks(page, "shell") for line in block.text.splitlines()]
    return [(name_of(page), shlex.split(line, comments=True)) for page, line in lines]


def test_commands_parse() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for page, (program, verb, *arguments) in commands():
        if program == "make":
            assert verb in targets, f"{page}: make {verb}"
        else:
            assert program == "tersor", f"{page}: {program}"
            cli.commands[verb].make_context(verb, arguments)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_recipes_are_well_formed(page: Path) -> None:
    for block in blocks(page, "yaml", "toml"):
        data = yaml.safe_load(block.text) if block.language == "yaml" else tomli.loads(block.text)
        if "grid" in data:
            check(settings_of(sweep_from(data, name_of(page)).tries), data=True)
        else:
            assert build_passes(data)


def anchors(page: Path) -> set[str]:
    """The names that the headings of a page can be linked by."""
    headings = HEADING.findall(FENCE.sub("", page.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> Iterator[str]:
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if "://" in link or link.startswith("mailto:"):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            yield link


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    assert list(broken_links(page)) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A title\n[a](page.md#a-title) [b](#no-title) [c](gone.md) [d](https://example.com)\n")
    assert list(broken_links(page)) == ["#no-title", "gone.md"]


def test_every_decision_is_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = LINK.findall((folder / "README.md").read_text(encoding="utf-8"))
    assert listed == sorted(path.name for path in folder.glob("[0-9]*.md"))


def test_the_architecture_names_every_pass_and_folder_and_no_file_that_is_gone() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    settings = tomli.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = [name.replace(".", "/") for name in settings["tool"]["setuptools"]["packages"]]
    passes = [PASSES.find(name).__name__ for name in PASSES.names()]
    assert [name for name in passes if f"`{name}`" not in text] == []
    assert [name for name in packages if f"{name.removeprefix('tersor/')}/`" not in text] == []
    files = [path for path in re.findall(r"`([\w/]+\.py)`", text) if not list(ROOT.glob(f"[!.]*/**/{path}"))]
    assert [path for path in files if not (ROOT / path).is_file()] == []


ROW = re.compile(r"^\| [^|]+\|([^|]+)\|([^|]+)\| `(\w+\.json)` \|$", re.MULTILINE)
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def measured(file: str) -> list[float]:
    """Every number in a file of results: what was measured, and what the notes say."""
    found = json.loads((ROOT / "benchmarks" / "results" / file).read_text(encoding="utf-8"))
    if "claims" in found:
        figures = [figure for claim in found["claims"] for figure in claim["figures"]]
        return [abs(mean["mean"]) for figure in figures for mean in (figure, figure["without"]) if mean]
    rows = found["rows"]
    figures = [row["ours"] for row in rows] + [row["peer"]["figure"] for row in rows if row["peer"]]
    noted = [float(number) for row in rows for number in NUMBER.findall(row["note"])]
    return [float(figure) for figure in figures if figure is not None] + noted


def test_figures_of_the_readme_are_measured() -> None:
    """Each number of a row that names a file of results is one of that file's, as it rounds."""
    rows = ROW.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert rows
    for ours, peer, file in rows:
        for number in NUMBER.findall(f"{ours} {peer}"):
            digits = len(number.partition(".")[2])
            assert any(f"{figure:.{digits}f}" == number for figure in measured(file)), f"{number} is not in {file}"
