"""What the site shows beside the pages of docs/: CONTRIBUTING.md and the examples; and links that lead to them.

A hook of mkdocs: it calls the functions `on_...` by name.
"""

from __future__ import annotations

import ast
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))
from reference import filled  # a hook has no package of its own

ROOT = Path(__file__).resolve().parents[2]
_NOTEBOOK = "examples/quickstart.ipynb"
_SHIM = "https://unpkg.com/iframe-worker/shim"
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?P<path>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from other files, and name every page that `*` stands for."""
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "contributing.md", content=redirected(contributing, "../CONTRIBUTING.md")))
    for path in sorted((ROOT / "examples").glob("*.py")):
        if path.name != "__init__.py":
            files.append(File.generated(config, f"examples/{path.stem}.md", content=example_page(path)))
    notebook = (ROOT / _NOTEBOOK).read_text(encoding="utf-8")
    files.append(File.generated(config, _NOTEBOOK, content=notebook))
    config.nav = expanded(config.nav, [file.src_uri for file in files.documentation_pages()])
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links out of docs/ lead to the pages that stand for those files."""
    return filled(redirected(markdown, page.file.src_uri))


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Run the search of pages on the disk by a script of our own: the plugin would load one from the network."""
    own = posixpath.relpath("site/frame_worker.js", posixpath.dirname(page.file.dest_uri) or ".")
    return output.replace(_SHIM, own)


def on_post_template(output_content: str, template_name: str, config: MkDocsConfig) -> str:
    """The same for the page of an address that does not exist."""
    return output_content.replace(_SHIM, "/site/frame_worker.js")


def redirected(markdown: str, place: str) -> str:
    """The text of the page at `place`, seen from docs/, with links to pages in place of those to other files."""

    def link(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(place), found["path"]))
        page = page_of(target)
        if page is None:
            return found[0]
        here = "." if place.startswith("..") else posixpath.dirname(place) or "."
        return f"]({posixpath.relpath(page, here)}{found['anchor'] or ''})"

    parts = _FENCE.split(markdown)
    fences = _FENCE.findall(markdown)
    mended = [_LINK.sub(link, part) for part in parts]
    return "".join(text for pair in zip(mended, [*fences, ""], strict=True) for text in pair)


def page_of(target: str) -> str | None:
    """The page that stands for a file outside docs/, both seen from docs/; None where there is none."""
    if target == "../CONTRIBUTING.md":
        return "contributing.md"
    if target == f"../{_NOTEBOOK}":
        return _NOTEBOOK
    if target.startswith("../examples/") and target.endswith(".py"):
        return f"examples/{Path(target).stem}.md"
    return posixpath.relpath(target, "../docs") if target.startswith("../docs/") else None


def example_page(path: Path) -> str:
    """An example as a page: what it says of itself, how to run it, its text."""
    text = path.read_text(encoding="utf-8")
    summary = ast.get_docstring(ast.parse(text)) or ""
    said, _, usage = summary.partition("python -m ")
    title = path.stem.replace("_", " ").capitalize()
    command = f"python -m {usage.strip() or f'examples.{path.stem}'}"
    return f"# {title}\n\n{said.strip()}\n\n```shell\n{command}\n```\n\n```python\n{text}```\n"


def expanded(nav: Any, pages: list[str]) -> Any:
    """The navigation with each `folder/*` as the pages of that folder that no other entry names."""
    named = set(_named(nav))
    return _expanded(nav, [page for page in pages if page not in named])


def _named(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    inner = entry.values() if isinstance(entry, dict) else entry
    return [name for part in inner for name in _named(part)]


def _expanded(entry: Any, unnamed: list[str]) -> Any:
    if isinstance(entry, dict):
        return {title: _expanded(part, unnamed) for title, part in entry.items()}
    if isinstance(entry, str):
        return _pages(entry, unnamed) if entry.endswith("*") else entry
    found: list[Any] = []
    for part in entry:
        inner = _expanded(part, unnamed)
        found += inner if isinstance(part, str) and part.endswith("*") else [inner]
    return found


def _pages(pattern: str, unnamed: list[str]) -> list[str]:
    folder = pattern.rstrip("*").rstrip("/")
    return sorted(page for page in unnamed if posixpath.dirname(page) == folder)
