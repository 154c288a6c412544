"""APL: the patch puzzle.

Paper     APL, the patch puzzle: self-supervision by finding out where each patch of an image lies
Idea      Cut an image into patches that share no edge, and let a transformer without positions say where each was.
Commands  python examples/apl.py --preset apl_cifar_small   CPU size, under 5 minutes on 2 CPU cores
          python examples/apl.py --preset apl_stl10         the original's size
          python examples/apl.py --help                     every option
Assembly  ssl_blocks/recipes/apl.py; wherever the package is installed, `ssl-blocks apl` does the same
Results   docs/results.md
"""

from ssl_blocks.cli import main
from ssl_blocks.recipes import RECIPES

if __name__ == "__main__":
    raise SystemExit(main(RECIPES["apl"]))
