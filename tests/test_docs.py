"""The documentation is true: its code runs, its commands and links exist, and no public name is left out."""

import re
import runpy
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import ssl_blocks
from ssl_blocks.cli import load_config
from ssl_blocks.cli.arguments import read_arguments
from ssl_blocks.cli.command import parse_config
from ssl_blocks.deploy.cli import COMMANDS, read_words
from ssl_blocks.evaluate.cli import configure, read_wish
from ssl_blocks.recipes import RECIPES

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
            if not lines[0].startswith("--8<--"):  # a file that is shown has tests of its own
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
    """Refuse a command line whose target, file, program or option is not there, or whose value is none."""
    words = shlex.split(line.removeprefix("$ "), comments=True)
    if not words:
        return
    program, *rest = words
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (root / "Makefile").read_text(), flags=re.MULTILINE)
        wrong = [word for word in rest if "=" not in word and word not in targets]
        assert not wrong, f"{line!r}: the Makefile has no target {wrong[0]!r}, but {targets}"
    elif Path(program).name in ("python", "python3"):
        assert rest, f"{line!r} runs nothing"
        check_python(line, rest, root)
    elif program == "torchrun":
        start = next((n for n, word in enumerate(rest) if word == "-m" or word.endswith(".py")), None)
        assert start is not None, f"{line!r} runs nothing"
        check_python(line, rest[start:], root)
    elif program == "ssl-blocks":
        check_options(line, rest)
    else:
        known = f"{sorted(ALLOWED)}, make, python, torchrun or ssl-blocks"
        assert program in ALLOWED, f"{line!r}: {program!r} is none of {known}"


def check_python(line: str, words: list[str], root: Path) -> None:
    """Look at what Python is to run: a module or a file."""
    if words[:2] == ["-m", "ssl_blocks"]:
        check_options(line, words[2:])
        return
    if words[0] == "-m":
        file, rest = root / f"{words[1].replace('.', '/')}.py", words[2:]
        if words[1] in ("pip", "pytest", "venv"):
            return
        assert file.is_file(), f"{line!r}: there is no module {words[1]}"
    else:
        file, rest = root / words[0], words[1:]
        assert file.is_file(), f"{line!r}: there is no file {words[0]}"
    if file.stem in (*RECIPES, "evaluate"):
        check_options(line, [file.stem, *rest])
        return
    shared = file.with_name("run.py")  # where the files of a folder share their options
    text = file.read_text() + (shared.read_text() if shared.is_file() else "")
    for option in rest:
        known = not option.startswith("--") or f'"{option.partition("=")[0]}"' in text
        assert known, f"{line!r}: {file.name} has no option {option}"


def check_options(line: str, words: list[str]) -> None:
    """Look at a recipe's or the evaluation's options and at the values that they get."""
    name, *rest = [word for word in words if word != "..."] or ["--help"]
    try:
        if name == "evaluate":
            wish = read_wish(rest, "evaluate.py")
            if rest and "help" not in wish.options:
                assert wish.asked, f"{line!r} evaluates by nothing"
                configure(wish, wish.word)
        elif name in COMMANDS:
            words, options, _ = read_words(COMMANDS[name], rest)
            if words is not None:
                parse_config(COMMANDS[name].settings, options, base={}, source="")
        elif name in RECIPES:
            arguments = read_arguments(rest, RECIPES[name].config)
            needs_files = isinstance(arguments.resume, Path) or arguments.replay is not None
            if rest and not arguments.wants_help and not needs_files:
                load_config(RECIPES[name], rest)
        else:
            assert name == "--help", f"{line!r}: {name!r} is none of {[*RECIPES]}"
    except ValueError as error:
        raise AssertionError(f"{line!r}: {error}") from error


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_block_names_its_language(page: Path) -> None:
    for block in read_blocks(page):
        known = {"python"} | SHELL | PLAIN
        assert block.language in known, f"{block} has the language {block.language!r}, expected one of {sorted(known)}"


@pytest.mark.parametrize("page", [p for p in PAGES if any(b.language == "python" for b in read_blocks(p))], ids=ids)
@pytest.mark.process
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


COMMAND = re.compile(r"(?:python (?:-m )?examples|ssl-blocks|torchrun)[ /.][^`\n]*?(?=`|\n|  )")
SOURCES = [file for folder in ("examples", "ssl_blocks/recipes") for file in sorted((ROOT / folder).rglob("*"))]
SOURCES = [file for file in SOURCES if file.suffix in (".py", ".yaml")]


def commands_within(text: str) -> list[str]:
    """Commands in prose and in headers: up to a backtick, a wide gap or the end of the line."""
    return [command.replace(" | ", " ") for command in COMMAND.findall(text)]


@pytest.mark.parametrize("file", [*SOURCES, ROOT / "README.md", ROOT / "docs" / "getting-started.md"], ids=ids)
def test_commands_in_headers_and_prose_exist(file: Path) -> None:
    for command in commands_within(re.sub(r"\\\n *", "", file.read_text())):
        check_command(command)


def test_headers_of_recipes_have_commands() -> None:
    assert {"torchrun", "ssl-blocks", "python"} == {
        command.split()[0] for file in SOURCES for command in commands_within(file.read_text())
    }
    for name in RECIPES:
        for file in (ROOT / "examples" / f"{name}.py", ROOT / "ssl_blocks" / "recipes" / f"{name}.py"):
            assert len(commands_within(file.read_text())) >= 2


def test_every_recipe_has_a_starter_and_a_section() -> None:
    sections = (ROOT / "docs" / "recipes.md").read_text()
    for name, recipe in RECIPES.items():
        assert f"`ssl_blocks/recipes/{name}.py`" in sections
        starter = (ROOT / "examples" / f"{name}.py").read_text()
        assert starter.startswith(f'"""{recipe.title}\n')
        assert f'main(RECIPES["{name}"])' in starter


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
    tables = runpy.run_path(str(ROOT / "docs" / "make_tables.py"))
    page = tables["PAGE"].read_text()
    assert tables["updated"](page) == page, "run python docs/make_tables.py"
    listed = [name for names in tables["TABLE"].findall(page) for name in names.split()]
    assert sorted(listed) == sorted(tables["PRESETS"])
    changed = page.replace("| 0.008 |", "| 0.009 |")
    assert tables["updated"](changed) == page != changed


def test_gallery_is_that_of_the_files() -> None:
    from docs import make_gallery as gallery

    page = gallery.PAGE.read_text()
    assert gallery.updated(page) == page, "run python -m docs.make_gallery"
    assert gallery.updated(page.replace("| yes |", "| no |")) == page
    code = 'class A:\n    """Say."""\n\n    # why\n    x = 1\n\n\ndef build():\n    return A\n'
    assert gallery.new_lines(code) == 2  # the class and its value


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
        ("python examples/recipe.py --bogus 1", "recipe.py has no option --bogus"),
        ("python examples/randsac.py --preset missing", "--preset 'missing' is neither"),
        ("python examples/randsac.py --preset randsac_digits --trainer.epoch 1", "--trainer.epoch is no known option"),
        ("ssl-blocks randsac --preset randsac_digits --trainer.epochs=none", "trainer.epochs='none' must be"),
        ("ssl-blocks randsac --resume runs/x --sed 1", "--sed is no known option"),
        ("ssl-blocks evaluate knn runs/x --knn.ks 1", "--knn.ks is no known option"),
        ("ssl-blocks evaluate knn runs/x --knn.k 0", "knn.k=0 must be greater than 0"),
        ("ssl-blocks ransac", "'ransac' is none of"),
        ("ssl-blocks embed runs/x photos -o f.npy --layer 3", "--layer is no known option; did you mean --layers"),
        ("ssl-blocks push runs/x", "push takes RUN OWNER/NAME, got runs/x"),
        ("torchrun --nproc-per-node 2 -m ssl_blocks randsac --bogus 1", "--bogus is no known option"),
        ("torchrun --nproc-per-node 2 examples/missing.py", "no file examples/missing.py"),
        ("curl example", "'curl' is none of"),
    ],
)
def test_wrong_commands_are_found(line: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text(".PHONY: demo\ndemo: other\n\trun\n")
    (tmp_path / "examples").mkdir()
    for name in ("recipe", "randsac"):
        (tmp_path / "examples" / f"{name}.py").write_text('"--seed"')
    with pytest.raises(AssertionError, match=complaint):
        check_command(line, tmp_path)
    for fine in (
        "make demo",
        "$ make demo X=1",
        "python examples/recipe.py --seed=1",
        "# a comment",
        "pip install -e .",
    ):
        check_command(fine, tmp_path)
