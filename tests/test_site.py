"""The documentation builds as a site: no broken link, every public name in the reference, nothing from the network."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "docs" / "site"


def hook(name: str) -> ModuleType:
    """A module of docs/site, which is no package."""
    spec = importlib.util.spec_from_file_location(f"site_{name}", SITE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(out: Path, config: Path = ROOT / "mkdocs.yml") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--config-file", str(config), "--site-dir", str(out)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = build(out)
    assert done.returncode == 0, done.stderr
    return out


def pages(site: Path) -> dict[str, str]:
    return {path.relative_to(site).as_posix(): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}


def test_every_page_is_built(site: Path) -> None:
    docs = ROOT / "docs"
    names = {path.relative_to(docs).with_suffix(".html").as_posix() for path in docs.rglob("*.md")}
    examples = {f"examples/{path.stem}.html" for path in (ROOT / "examples").glob("[a-z]*.py")}
    wanted = {name.replace("README", "index") for name in names} | examples | {"contributing.html"}
    assert wanted <= set(pages(site))


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    text = "".join(page for name, page in pages(site).items() if name.startswith("reference/"))
    anchors = set(re.findall(r'id="([\w.]+)"', text))
    assert sorted(set(hook("reference").public_names()) - anchors) == []


def test_nothing_is_loaded_from_the_network(site: Path) -> None:
    loaded = re.compile(r'<(?:script|img|iframe|link rel="stylesheet")[^>]*(?:src|href)="(https?:)?//')
    assert [name for name, page in pages(site).items() if loaded.search(page)] == []
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", styles)


def test_options_in_docstrings_become_lists() -> None:
    text = "What it does.\n\n    code: kept\n\nsize: rows a batch. seed: of the order,\n    drawn anew.\nsee: nothing."
    listed = hook("option_lists").with_lists(text, {"size", "seed"})
    assert listed == (
        "What it does.\n\n    code: kept\n\n- `size`: rows a batch.\n- `seed`: of the order,\n    drawn anew.\n"
        "    see: nothing."
    )


def test_a_star_stands_for_the_pages_that_no_other_entry_names() -> None:
    nav = ["a.md", {"More": ["b/first.md", "b/*"]}, "*"]
    pages = ["a.md", "b/first.md", "b/third.md", "b/second.md", "c.md"]
    expected = ["a.md", {"More": ["b/first.md", "b/second.md", "b/third.md"]}, "c.md"]
    assert hook("pages").expanded(nav, pages) == expected


def test_links_out_of_the_docs_lead_to_the_pages_that_stand_for_them() -> None:
    redirected = hook("pages").redirected
    text = "[a](../../CONTRIBUTING.md#style) [b](../../examples/demo.py) [c](other.md) ```x```\n"
    mended = "[a](../contributing.md#style) [b](../examples/demo.md) [c](other.md) ```x```\n"
    assert redirected(text, "targets/hls.md") == mended
    assert redirected("[a](docs/cli.md)", "../CONTRIBUTING.md") == "[a](cli.md)"


def test_a_broken_link_fails_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("[gone](gone.md)", encoding="utf-8")
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    validation = settings[settings.index("validation:") : settings.index("# An entry that ends")]
    assert yaml.safe_load(validation)["validation"]["links"]["not_found"] == "warn"
    config = tmp_path / "mkdocs.yml"
    config.write_text(f"site_name: broken\nstrict: true\n{validation}", encoding="utf-8")
    done = build(tmp_path / "out", config)
    assert done.returncode == 1
    assert "gone.md" in done.stderr
