"""Hooks of mkdocs: include the figures of the benchmarks, and add pages that are missing from the navigation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
RESULTS = "../bench/results/"
_ROLE = re.compile(r":(?:class|func|mod|meth|data|attr|exc):<code>([^<]*)</code>")
_DIRECTIVE = re.compile(r"\s*(?:<span class=\"c1\">)?# doctest: [+A-Z]+(?:</span>)?")


def on_config(config: Any) -> Any:
    """Append unlisted pages to the how-to pages, and omit listed pages that do not exist."""
    there = {p.name for p in Path(config.docs_dir).glob("*.md")}
    listed = {page for section in config.nav for pages in section.values() for page in pages}
    for section in config.nav:
        for pages in section.values():
            pages[:] = [p for p in pages if p in there]
            if "how-to.md" in pages:
                pages += sorted(there - listed)
    return config


def on_files(files: Any, config: Any) -> Any:
    for path in sorted((ROOT / "bench" / "results").glob("*.png")):
        files.append(File.generated(config, f"images/{path.name}", abs_src_path=str(path)))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings are written for Sphinx's roles and doctest too; a reader sees plain code."""
    return _DIRECTIVE.sub("", _ROLE.sub(lambda m: f"<code>{m[1].lstrip('~')}</code>", html))


def on_page_markdown(markdown: str, **_: Any) -> str:
    return markdown.replace(f"]({RESULTS}", "](images/").replace("```python notest", "```python")
