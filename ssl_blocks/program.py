"""Which program this is, and how the user started it, so that messages can name commands that work for them."""

import shutil
import sys
from pathlib import Path

VERSION = "0.1.0"  # of the package, as pyproject.toml has it: a source tree that was never installed knows it, too


def as_typed() -> str:
    """The program as the user typed it: ``ssl-blocks``, ``python -m ssl_blocks`` or ``python examples/mae.py``."""
    script = Path(sys.argv[0])
    if script.name == "__main__.py":
        return f"python -m {script.parent.name}"
    if script.suffix == ".py":
        return f"python {script}"
    return script.name if shutil.which(script.name) == str(script) else str(script)


def evaluation_as_typed() -> str:
    """The same for evaluation: the starter beside the one that was started, or the installed command."""
    script = Path(sys.argv[0])
    if script.suffix != ".py" or script.name == "__main__.py":
        return f"{as_typed()} evaluate"
    starter = script.with_name("evaluate.py")
    return f"python {starter}" if starter.is_file() else "ssl-blocks evaluate"
