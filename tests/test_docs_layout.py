"""Code of the documentation fits its column, and pages that show another file redefine the links of that file."""

import re
from pathlib import Path

import pytest

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
