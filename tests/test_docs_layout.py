"""Code of the documentation fits its column, and pages that show another file redefine the links of that file."""

import ast
import re
from pathlib import Path

import pytest

from docs.make_gallery import QUOTED, files
from docs.make_notebook import NOTEBOOK, PAGE, cells, notebook

ROOT = Path(__file__).parents[1]
PAGES = sorted({ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")})
COLUMNS = 120  # what docs/stylesheets/width.css makes room for at 1280 px; ruff holds docstrings to it
FENCED = re.compile(r"^ *```[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
DEFINED = re.compile(r"^\[([^\]]+)\]: (?!https?:)\S+$", re.MULTILINE)


def too_long(text: str) -> list[str]:
    return [line for block in FENCED.findall(text) for line in block.splitlines() if len(line) > COLUMNS]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_fits_its_column(page: Path) -> None:
    assert not too_long(page.read_text()), f"more than {COLUMNS} columns scroll sideways"


def test_long_code_is_found_and_long_prose_is_not() -> None:
    long = "x" * (COLUMNS + 1)
    text = f"{long}\n\n```text\nshort\n{long}\n```\n\n{long}\n"
    assert too_long(text) == [long]
    assert not too_long(text.replace(long, long[1:]))


@pytest.mark.parametrize(("page", "shown"), [("index.md", "README.md"), ("contributing.md", "CONTRIBUTING.md")])
def test_a_page_that_shows_a_file_redefines_its_links(page: str, shown: str) -> None:
    """Neither builder resolves them in all cases: zensical looks into no file that a page includes."""
    text = (ROOT / "docs" / page).read_text()
    assert f'--8<-- "{shown}"' in text
    assert set(DEFINED.findall((ROOT / shown).read_text())) == set(DEFINED.findall(text))


def test_the_map_of_contributing_leads_somewhere() -> None:
    """Files and folders that CONTRIBUTING names exist; NAME stands for what a reader adds."""
    named = re.findall(r"`((?:ssl_blocks|tests|docs|examples)/[^`\s]*)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert len(named) > 30
    missing = [path for path in named if "NAME" not in path and not (ROOT / path).exists()]
    assert not missing, f"CONTRIBUTING.md names {missing}"


RETURNS = re.compile(r"^(?:Returns|Yields):\n((?:    .*\n?|\n)+)", re.MULTILINE)


def returns(code: str) -> dict[str, str]:
    """What docstrings say of what is returned, by the name of what they document."""
    documented = (ast.FunctionDef, ast.ClassDef)
    nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, documented)]
    found = {node.name: RETURNS.search(ast.get_docstring(node) or "") for node in nodes}
    return {name: section[1] for name, section in found.items() if section}


def test_what_is_returned_is_shown_whole() -> None:
    """The reference takes what stands before a colon for a type, and drops it."""
    texts = {path: path.read_text() for path in (ROOT / "ssl_blocks").rglob("*.py")}
    read = {path: returns(text) for path, text in texts.items() if "Returns:" in text}
    assert sum(map(len, read.values())) > 30
    cut = [f"{path.relative_to(ROOT)}: {name}" for path, found in read.items() for name in found if ": " in found[name]]
    assert not cut, f"a colon in Returns: {cut}"
    assert returns('def f():\n    """Do.\n\n    Returns:\n        Two: one.\n    """') == {"f": "    Two: one."}


def test_papers_has_every_paper_that_a_header_names() -> None:
    page = (ROOT / "docs" / "papers.md").read_text()
    methods = [*files().values(), *(ROOT / "ssl_blocks" / "recipes").glob("*.py")]
    headers = {path: ast.get_docstring(ast.parse(path.read_text())) or "" for path in methods}
    titles = {title for text in headers.values() for title in QUOTED.findall(" ".join(text.split()))}
    assert len(titles) > 30
    missing = [title for title in titles if title not in page]
    assert not missing, f"docs/papers.md misses {missing}"


def test_the_notebook_is_its_page() -> None:
    page = PAGE.read_text()
    assert NOTEBOOK.read_text() == notebook(page), "run python -m docs.make_notebook"
    code = [cell for cell in cells(page) if cell["cell_type"] == "code"]
    assert len(code) == page.count("```python") > 5
