"""The command ``ssl-blocks``: a recipe by name, evaluation, and what is done with a finished run."""

import sys
from collections.abc import Sequence

from ssl_blocks import evaluate
from ssl_blocks.cli import main as run_recipe
from ssl_blocks.cli.arguments import closest_word
from ssl_blocks.cli.command import WRONG_WISH
from ssl_blocks.cli.ending import ending_in_a_line, fail
from ssl_blocks.deploy.cli import COMMANDS, main as run_command
from ssl_blocks.engine.rank import is_rank_zero
from ssl_blocks.program import as_typed
from ssl_blocks.recipes import RECIPES

EVALUATE = "evaluate"


@ending_in_a_line("the command did not end")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names, and return its exit code.

    Args:
        argv: arguments; ``None`` takes the process's own.
    """
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("--help", "-h"):
        if is_rank_zero():
            print(help_text(), end="")
        return 0
    program = f"{as_typed()} {name}"
    if name == EVALUATE:
        return evaluate.main(rest, program=program)
    if name in RECIPES:
        return run_recipe(RECIPES[name], rest, program=program)
    if name in COMMANDS:
        return run_command(COMMANDS[name], rest, program=program)
    names = [*RECIPES, EVALUATE, *COMMANDS]
    near = closest_word(name, names)
    hint = f"did you mean {near}? " if near else ""
    return fail(ValueError(f"{name!r} is no command; {hint}commands: {', '.join(names)}"), WRONG_WISH)


def help_text() -> str:
    """List the commands."""
    meanings = {name: recipe.title for name, recipe in RECIPES.items()}
    meanings[EVALUATE] = "What an encoder is worth: nearest neighbours, probes, few labels, fine-tuning, segmentation."
    meanings |= {command.name: command.title for command in COMMANDS.values()}
    width = max(map(len, meanings)) + 2
    lines = [f"  {name.ljust(width)}{meaning}" for name, meaning in meanings.items()]
    program = as_typed()
    return "\n".join(
        [f"usage: {program} COMMAND [--OPTION VALUE ...]", "", "commands:", *lines, "", f"{program} COMMAND --help", ""]
    )


if __name__ == "__main__":
    raise SystemExit(main())
