"""The documentation is true: its code runs, its commands and links exist, and no public name is left out."""

import importlib.util
import re
import shlex
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import ssl_blocks

ROOT = Path(__file__).parents[1]
PAGES = sorted({ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")})
SHELL = {"console", "bash", "sh"}
PLAIN = {"text", "yaml", "toml", "json"}
ALLOWED = {"cd", "git", "mkdir", "pip", "source", "tar", ".venv/bin/pip", ".venv/bin/pre-commit"}
FENCE = re.compile(r"^(?P<indent> *)(?P<fence>```+)(?P<language>[^\s`]*)[^`]*$")


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    """Number of the first line inside the fence, from 1."""
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def read_blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page."""
    blocks: list[Block] = []
    opened: tuple[int, str, str] | None = None  # line, fence, language
    lines: list[str] = []
    for number, line in enumerate(page.read_text().splitlines(), start=1):
        match = FENCE.match(line)
        if opened is None and match:
            opened, lines = (number + 1, match["fence"], match["language"]), []
        elif opened is not None and line.strip() == opened[1]:
            blocks.append(Block(page, opened[0], opened[2], "\n".join(lines)))
            opened = None
        elif opened is not None:
            lines.append(line)
    assert opened is None, f"{page.relative_to(ROOT)}:{opened[0] - 1} opens a block that nothing closes"
    return blocks


def ids(page: Path) -> str:
    return str(page.relative_to(ROOT))


def run_python(blocks: list[Block]) -> None:
    """Run blocks one after the other in one namespace; errors carry the page's file and line."""
    namespace: dict[str, Any] = {"__name__": "__docs__"}
    for block in blocks:
        source = "\n" * (block.line - 1) + block.text
        try:
            exec(compile(source, str(block.page), "exec"), namespace)
        except BaseException as error:
            error.add_note(f"in the documentation's block that starts at {block}")
            raise


def check_command(line: str, root: Path = ROOT) -> None:
    """Refuse a command line whose target, file or program is not there."""
    words = shlex.split(line.removeprefix("$ "), comments=True)
    if not words:
        return
    program, *rest = words
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (root / "Makefile").read_text(), flags=re.MULTILINE)
        wrong = [word for word in rest if "=" not in word and word not in targets]
        assert not wrong, f"{line!r}: the Makefile has no target {wrong[0]!r}, but {targets}"
    elif Path(program).name in ("python", "python3"):
        if rest[:1] == ["-m"]:
            module = rest[1]
            assert module in ("pip", "pytest", "venv") or (root / f"{module.replace('.', '/')}.py").is_file(), (
                f"{line!r}: there is no module {module}"
            )
        else:
            assert rest, f"{line!r} runs nothing"
            assert (root / rest[0]).is_file(), f"{line!r}: there is no file {rest[0]}"
            check_preset(line, rest, root)
    elif program == "torchrun":
        script = next((number for number, word in enumerate(rest) if word.endswith(".py")), None)
        assert script is not None, f"{line!r} runs nothing"
        check_command(shlex.join(["python", *rest[script:]]), root)
    else:
        assert program in ALLOWED, f"{line!r}: {program!r} is none of {sorted(ALLOWED)}, make, python or torchrun"


def check_preset(line: str, words: list[str], root: Path) -> None:
    for option, value in pairwise(words):
        if option == "--preset" and words[0].startswith("examples/"):
            assert (root / "examples" / "configs" / f"{value}.yaml").is_file(), f"{line!r}: no preset {value!r}"


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_block_names_its_language(page: Path) -> None:
    for block in read_blocks(page):
        known = {"python"} | SHELL | PLAIN
        assert block.language in known, f"{block} has the language {block.language!r}, expected one of {sorted(known)}"


@pytest.mark.parametrize("page", [p for p in PAGES if any(b.language == "python" for b in read_blocks(p))], ids=ids)
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            run_python([block for block in read_blocks(page) if block.language == "python"])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("page", [p for p in PAGES if any(b.language in SHELL for b in read_blocks(p))], ids=ids)
def test_commands_exist(page: Path) -> None:
    for block in read_blocks(page):
        if block.language in SHELL:
            for line in block.text.replace("\\\n", " ").splitlines():
                check_command(line)


def test_every_public_name_is_explained() -> None:
    text = "\n".join(
        (ROOT / "docs" / f"{name}.md").read_text() for name in ("components", "composing", "concepts", "extending")
    )
    words = set(re.findall(r"\w+", text))
    missing = sorted(set(ssl_blocks.__all__) - words)
    assert not missing, f"no page of components, composing, concepts and extending speaks of {missing}"


LINK = re.compile(r"\[[^\]]*\]\((?!https?:|#)([^)#\s]+)(?:#[^)\s]*)?\)|^\[[^\]]+\]: (?!https?:)(\S+)$", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for inline, definition in LINK.findall(text):
        target = inline or definition
        assert (page.parent / target).exists(), f"{ids(page)} links to {target}, which does not exist"


def test_readme_has_no_inline_links_to_files() -> None:
    """docs/index.md shows the README from another folder, and can only redefine links given by reference."""
    inline = [a for a, _ in LINK.findall((ROOT / "README.md").read_text()) if a]
    assert not inline, f"write [{inline[0]}] and define it at the end of README.md, as docs/index.md does"


def test_docstrings_say_examples() -> None:
    """The Google style knows "Examples"; under "Example" the reference pages would show doctests as prose."""
    wrong = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sorted((ROOT / "ssl_blocks").rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if line.strip() == "Example:"
    ]
    assert not wrong, f"write 'Examples:' at {wrong}"


def test_navigation_and_pages_agree() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())

    def paths(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        children = entry if isinstance(entry, list) else entry.values()
        return [path for child in children for path in paths(child)]

    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    unlisted = tuple(config["not_in_nav"].split())
    assert set(paths(config["nav"])) == {page for page in pages if not page.startswith(unlisted)}


def test_tables_of_recipes_are_those_of_the_presets() -> None:
    spec = importlib.util.spec_from_file_location("make_tables", ROOT / "docs" / "make_tables.py")
    assert spec is not None
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    page = tables.PAGE.read_text()
    assert tables.updated(page) == page, "run python docs/make_tables.py"
    listed = {name for names in tables.TABLES.values() for name in names}
    assert listed == {path.stem for path in (ROOT / "examples" / "configs").glob("*.yaml")}


# --- the checks themselves --------------------------------------------------------------------------------------


def write(folder: Path, text: str) -> Path:
    page = folder / "page.md"
    page.write_text(text)
    return page


def test_blocks_share_a_page_and_failures_name_its_line(tmp_path: Path) -> None:
    page = write(tmp_path, "# Title\n\n```python\nx = 1\n```\n\ntext\n\n```python\ny = x + 1\nassert y == 3\n```\n")
    blocks = [Block(ROOT / "page.md", b.line, b.language, b.text) for b in read_blocks(page)]
    assert [block.line for block in blocks] == [4, 10]
    with pytest.raises(AssertionError) as failure:
        run_python(blocks)
    assert failure.traceback[-1].lineno + 1 == 11
    assert str(failure.traceback[-1].path).endswith("page.md")
    assert "page.md:10" in failure.value.__notes__[0]


def test_open_blocks_are_found() -> None:
    page = ROOT / "docs" / "open.md"

    class Page:
        def read_text(self) -> str:
            return "```python\nx = 1\n"

        def relative_to(self, _: Path) -> Path:
            return page

    fake: Any = Page()
    with pytest.raises(AssertionError, match=r"open\.md:1 opens a block"):
        read_blocks(fake)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("make nothing", "no target 'nothing'"),
        ("python examples/missing.py --help", "no file examples/missing.py"),
        ("python -m examples.missing", "no module examples.missing"),
        ("python examples/recipe.py --preset missing", "no preset 'missing'"),
        ("torchrun --nproc-per-node 2 examples/missing.py", "no file examples/missing.py"),
        ("curl example", "'curl' is none of"),
    ],
)
def test_wrong_commands_are_found(line: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text(".PHONY: demo\ndemo: other\n\trun\n")
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "recipe.py").touch()
    with pytest.raises(AssertionError, match=complaint):
        check_command(line, tmp_path)
    for fine in ("make demo", "$ make demo X=1", "python examples/recipe.py --help", "# a comment", "pip install -e ."):
        check_command(fine, tmp_path)
