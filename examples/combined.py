"""RandSAC and DINO on one encoder.

Papers    Hua et al.: "Self-supervision through Random Segments with Autoregressive Coding (RandSAC)"
          Caron et al.: "Emerging Properties in Self-Supervised Vision Transformers" (DINO)
Idea      Train one encoder by the sum of both losses.
Commands  python examples/combined.py --preset combined_cifar_small   CPU size, under 5 minutes on 2 CPU cores
          python examples/combined.py --help                          every option
Assembly  ssl_blocks/recipes/combined.py; wherever the package is installed, `ssl-blocks combined` does the same
Results   docs/results.md
"""

from ssl_blocks.cli import main
from ssl_blocks.recipes import RECIPES

if __name__ == "__main__":
    raise SystemExit(main(RECIPES["combined"]))
