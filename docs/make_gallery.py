"""Write the tables and sections of docs/gallery.md out of the files of the gallery: ``python -m docs.make_gallery``.

Nothing of the gallery is imported: headers, parts and lines are read off the source.
"""

import ast
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "gallery"
PAGE = Path(__file__).with_name("gallery.md")
PAPERS = Path(__file__).with_name("papers.md")
RESULTS = FOLDER / "results.yaml"
NO_METHOD = ("run",)
MARKED = re.compile(r"<!-- (\w+) -->.*?<!-- end -->", re.DOTALL)
LINKED = re.compile(r"\[([^\]]+)\]\((https?://[^)]+)\)")
QUOTED = re.compile(r'"([^"]+)"')
FIELD = re.compile(r"^(Paper|Idea|What|Where|Who|New|Command) +(\S.*)$")


def files() -> dict[str, Path]:
    """The methods' files by name, as they are read: what predicts in place first."""
    found = {file.stem: file for file in sorted(FOLDER.glob("*.py")) if file.stem not in NO_METHOD}
    return dict(sorted(found.items(), key=lambda item: header(item[1].read_text())["title"].lower()))


def header(text: str) -> dict[str, str]:
    """Fields of a file's header, and its first line as ``title`` (before the colon) and ``summary``."""
    first, *lines = (ast.get_docstring(ast.parse(text)) or "").splitlines()
    title, _, summary = first.partition(":")
    fields, name = {"title": title, "summary": summary.strip().rstrip(".")}, ""
    for line in lines:
        match = FIELD.match(line)
        if match:
            name, fields[match[1]] = match[1], match[2].strip()
        elif name and line.startswith(" "):
            fields[name] += f" {line.strip()}"
    return fields


def parts(text: str) -> list[str]:
    """Parts of the library that a file puts together, in order of their appearance."""
    tree = ast.parse(text)
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ssl_blocks.")
        for alias in node.names
    }
    found = [
        (node.lineno, node.attr if isinstance(node, ast.Attribute) else node.id)
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("sb", "sb.parts", "sb.objectives"))
        or (isinstance(node, ast.Name) and node.id in imported)
    ]
    values = {"Grid", "Segments", "Views", "PatchTokenizer", "ObjectiveOutput", "Objective", "Serialization"}
    names = [name for _, name in sorted(found) if name not in values | {"parts", "objectives", "encoders", "data"}]
    return list(dict.fromkeys(names))


def new_lines(text: str) -> int:
    """Lines of logic beside the assembly: of classes and functions other than ``build``, without comments."""
    tree, counted = ast.parse(text), set()
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef) or node.name == "build":
            continue
        lines = set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        for inner in ast.walk(node):
            if isinstance(inner, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(inner) is not None:
                doc = inner.body[0]
                lines -= set(range(doc.lineno, (doc.end_lineno or doc.lineno) + 1))
        counted |= lines
    source = text.splitlines()
    return sum(bool(source[i - 1].strip()) and not source[i - 1].strip().startswith("#") for i in counted)


def leak_checked(text: str) -> str:
    """Whether `assert_no_leak` has something to look at: whole views that are compared hide nothing."""
    if "views=True" not in text:
        return "yes"
    looked_at = {"sb.mae(": "yes, MAE's part", "DistilledTokens(": "yes, iBOT's part"}
    return next((found for part, found in looked_at.items() if part in text), "does not apply")


def overview() -> str:
    """Method, parts, new lines, leak test, kNN."""
    knn = yaml.safe_load(RESULTS.read_text())["methods"] if RESULTS.is_file() else {}
    rows = [["method", "parts", "new lines", "leak-checked", "kNN before → after"], ["---"] * 5]
    for name, file in files().items():
        text = file.read_text()
        score = f"{knn[name]['before']:.1%} → {knn[name]['after']:.1%}" if name in knn else "not measured"
        named = ", ".join(f"`{part}`" for part in parts(text))
        rows.append([f"[{header(text)['title']}](#{name})", named, str(new_lines(text)), leak_checked(text), score])
    return table(rows)


def questions() -> str:
    """What is predicted, where, and who sees whom."""
    rows = [["method", "what is predicted", "where", "who sees whom"], ["---"] * 4]
    for file in files().values():
        fields = header(file.read_text())
        rows.append([fields["title"], fields["What"], fields["Where"], fields["Who"]])
    return table(rows)


def measured() -> str:
    """How the numbers came about."""
    if not RESULTS.is_file():
        return "Nothing was measured yet."
    results = yaml.safe_load(RESULTS.read_text())
    return f"Measured {results['date']} on {results['hardware']}: `{results['command']}`. {results['note']}"


def linked(papers: str) -> str:
    """What a header says of its papers, with links where docs/papers.md has them."""
    links = dict(LINKED.findall(PAPERS.read_text()))
    return QUOTED.sub(lambda m: f"[{m[1]}]({links[m[1]]})" if m[1] in links else m[0], papers)


def sections() -> str:
    """A section a method, which shows its file."""
    return "\n\n".join(
        f"## {(fields := header(file.read_text()))['title']} {{#{name}}}\n\n{fields['Idea']}\n\n"
        f'Paper: {linked(fields["Paper"])}.\n\nNew: {fields["New"]}.\n\n```python title="examples/gallery/{name}.py"\n'
        f'--8<-- "examples/gallery/{name}.py"\n```'
        for name, file in files().items()
    )


def table(rows: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def updated(page: str) -> str:
    """The page with its tables and sections made anew."""
    made = {"overview": overview, "questions": questions, "measured": measured, "sections": sections}
    return MARKED.sub(lambda m: f"<!-- {m[1]} -->\n\n{made[m[1]]()}\n\n<!-- end -->", page)


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text()))
