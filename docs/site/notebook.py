"""The quick start as a notebook, without outputs: `python docs/site/notebook.py` writes examples/quickstart.ipynb."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "quickstart.md"
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"

_CODE = re.compile(r"^```python\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?![a-z]+:|#)")


def notebook(page: str) -> str:
    """The notebook of a page of docs/: its Python blocks as code, all else as text, with links from examples/."""
    cells: list[dict[str, Any]] = []
    for place, part in enumerate(_CODE.split(page)):
        source = part.strip("\n")
        if not source:
            continue
        cell = {"id": f"cell-{place}", "metadata": {}, "source": _lines(source)}
        if place % 2:
            cells.append({"cell_type": "code", "execution_count": None, "outputs": [], **cell})
        else:
            cells.append({"cell_type": "markdown", **cell, "source": _lines(_LINK.sub("](../docs/", source))})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    document = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(document, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


if __name__ == "__main__":
    NOTEBOOK.write_text(notebook(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
