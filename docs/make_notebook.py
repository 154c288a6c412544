"""Write examples/own_images.ipynb out of docs/own-images.md: ``python -m docs.make_notebook``."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE, NOTEBOOK = ROOT / "docs" / "own-images.md", ROOT / "examples" / "own_images.ipynb"
CODE = re.compile(r"^```python\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
TO_PAGE = re.compile(r"\]\(([\w-]+\.md)\)")


def cells(page: str) -> list[dict[str, object]]:
    """Prose and code of a page in turn; links to pages lead to their files."""
    parts = CODE.split(TO_PAGE.sub(r"](../docs/\1)", page))
    found: list[dict[str, object]] = []
    for number, text in enumerate(parts):
        code: dict[str, object] = {"execution_count": None, "outputs": []} if number % 2 else {}
        source = text.strip().splitlines(keepends=True)
        if source:
            kind = "code" if number % 2 else "markdown"
            found.append({"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": source, **code})
    return found


def notebook(page: str) -> str:
    """The notebook as its file holds it."""
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    whole = {"cells": cells(page), "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    NOTEBOOK.write_text(notebook(PAGE.read_text()))
