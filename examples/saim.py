"""SAIM: stochastic autoregressive image modeling.

Paper     Qi, Yang, Zhu, Liu, Wu, Zhao, Li:
          "Exploring Stochastic Autoregressive Image Modeling for Visual Representation"
Idea      Read patches one by one in random order; a second stream of queries predicts each from those before it.
Commands  python examples/saim.py --preset saim_cifar_small   CPU size, under 5 minutes on 2 CPU cores
          python examples/saim.py --help                      every option
Assembly  ssl_blocks/recipes/saim.py; wherever the package is installed, `ssl-blocks saim` does the same
Results   docs/results.md
"""

from ssl_blocks.cli import main
from ssl_blocks.recipes import RECIPES

if __name__ == "__main__":
    raise SystemExit(main(RECIPES["saim"]))
