"""What users wrote is shown as they wrote it."""

import ast
import io
import re
from pathlib import Path

import pytest
from rich.table import Table

import ssl_blocks
from ssl_blocks.encoders.card import plain_card
from ssl_blocks.pretrain.report import stage
from ssl_blocks.text import code, plain, quoted, terminal

ODD = ["[/home/me]", "[red]warm[/red]", "[/]", ":smile:", "a|b", "a `b` ``c``", "$x$ {y} %s", "first\nsecond", "\\[x]"]


@pytest.mark.parametrize("text", ODD)
def test_a_terminal_prints_words_as_they_are(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    console = terminal()
    table = Table(text, title=text)
    table.add_row(text)
    console.print(text, soft_wrap=True)
    console.print(table)
    with stage(console, text):
        pass
    shown = capsys.readouterr().out
    for line in text.splitlines():
        assert shown.count(line) >= 4, shown


def test_nobody_else_makes_a_console() -> None:
    package = Path(ssl_blocks.__file__).parent
    for file in package.rglob("*.py"):
        nodes = ast.walk(ast.parse(text)) if "Console" in (text := file.read_text()) else ()
        calls = [n.func for n in nodes if isinstance(n, ast.Call)]
        names = {getattr(f, "id", getattr(f, "attr", "")) for f in calls}
        assert file.name == "text.py" or "Console" not in names, file


@pytest.mark.parametrize("text", [*ODD, 'say "a"', "it's", "a\tb", "x\udc80y"])
def test_a_literal_is_the_text_again(text: str) -> None:
    literal = quoted(text)
    assert ast.literal_eval(literal) == text
    assert "\n" not in literal
    literal.encode()


@pytest.mark.parametrize("text", ODD)
def test_markdown_keeps_cells_and_lines(text: str) -> None:
    for cell in (plain(text), code(text)):
        assert "\n" not in cell
        assert not re.search(r"(?<!\\)(\\\\)*\|", cell)
    assert re.sub(r"\\(.)", r"\1", plain(text)) == " ".join(text.split())


def test_code_is_fenced_by_more_backticks_than_it_holds() -> None:
    assert code("x") == "`x`"
    assert code("a `b` ``c``") == "``` a `b` ``c`` ```"
    assert code("a|b") == "`a\\|b`"


def test_a_card_of_a_folder_with_an_odd_name() -> None:
    folder = Path('odd"``` [x](y)\n# no | heading')
    exported = {"architecture": "a|b`c", "ssl_blocks": {"pooling": "mean | max", "encoder": "E"}, "pretrained_cfg": {}}
    card = plain_card(folder, exported)
    assert [line for line in card.splitlines() if line.startswith("# ")] == [f"# {plain(folder.name)}"]
    assert "| features | mean \\| max |" in card.splitlines()
    blocks = re.findall(r"^```python\n(.*?)^```", card, flags=re.DOTALL | re.MULTILINE)
    found = [n.value for b in blocks for n in ast.walk(ast.parse(b)) if isinstance(n, ast.Constant)]
    assert found.count(str(folder)) == 1
    assert f"local-dir:{folder}" in found


def test_labels_of_curves_are_words(tmp_path: Path) -> None:
    from ssl_blocks.visualize import draw_curves

    file = tmp_path / "metrics.csv"
    file.write_text("step,epoch,loss,knn\n0,1,0.9,0.2\n1,2,0.7,0.4\n")
    figure = draw_curves({"$a_{$": file, "_hidden": file}, references={"$\\frac$": 0.5})
    figure.savefig(io.BytesIO(), format="png")
    shown = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert len(shown) == 2, shown
