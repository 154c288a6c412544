"""RandSAC: self-supervision through random segments with autoregressive coding.

Paper     Hua, Tian, Ren, Raptis, Zhao, Sigal: "Self-supervision through Random Segments with Autoregressive Coding"
Idea      Read an image as random segments in random order; predict each segment at once from those before it.
Commands  python examples/randsac.py --preset randsac_digits        smoke test, under 3 minutes on 2 CPU cores
          python examples/randsac.py --preset randsac_cifar_small   CPU size, under 10 minutes on 2 CPU cores
          python examples/randsac.py --help                         every option
Assembly  ssl_blocks/recipes/randsac.py; wherever the package is installed, `ssl-blocks randsac` does the same
Results   docs/results.md
"""

from ssl_blocks.cli import main
from ssl_blocks.recipes import RECIPES

if __name__ == "__main__":
    raise SystemExit(main(RECIPES["randsac"]))
