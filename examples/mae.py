"""MAE: masked autoencoders.

Paper     He, Chen, Xie, Li, Dollar, Girshick: "Masked Autoencoders Are Scalable Vision Learners"
Idea      Hide most patches of an image, encode the others alone, and predict the hidden ones in a small decoder.
Commands  python examples/mae.py --preset mae_cifar_small   CPU size, under 5 minutes on 2 CPU cores
          python examples/mae.py --help                     every option
Assembly  ssl_blocks/recipes/mae.py; wherever the package is installed, `ssl-blocks mae` does the same
Results   docs/results.md
"""

from ssl_blocks.cli import main
from ssl_blocks.recipes import RECIPES

if __name__ == "__main__":
    raise SystemExit(main(RECIPES["mae"]))
