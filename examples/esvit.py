"""EsViT and DINO: self-distillation between views of an image, and between their regions.

Papers    Li et al.: "Efficient Self-supervised Vision Transformers for Representation Learning" (EsViT)
          Caron et al.: "Emerging Properties in Self-Supervised Vision Transformers" (DINO)
Idea      A student says of a crop, and of its regions, what its moving average says of another crop of the image.
Commands  python examples/esvit.py --preset esvit_digits        crowds of digits, 2 minutes on 2 CPU cores
          python examples/esvit.py --preset esvit_cifar_small   CPU size, under 5 minutes on 2 CPU cores
          python examples/esvit.py --help                       every option
Assembly  ssl_blocks/recipes/esvit.py; wherever the package is installed, `ssl-blocks esvit` does the same
Results   docs/results.md
"""

from ssl_blocks.cli import main
from ssl_blocks.recipes import RECIPES

if __name__ == "__main__":
    raise SystemExit(main(RECIPES["esvit"]))
