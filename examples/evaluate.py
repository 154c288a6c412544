"""What an encoder is worth: nearest neighbours, probes, few labels, fine-tuning, segmentation.

Protocols  RandSAC, Sec. 5.1, Tables 18 and 19 and appendix B; few labels as in APL
Commands   python examples/evaluate.py knn probe fewshot runs/randsac_digits    a run, under a minute on 2 CPU cores
           python examples/evaluate.py knn vit_tiny_patch16_224 --data.name digits          a model of timm
           python examples/evaluate.py finetune runs/randsac_digits --finetune.from_random true
           python examples/evaluate.py segment runs/randsac_digits --image_size 32 --segment.epochs 5
           python examples/evaluate.py --help                                   every option
Results    a table, an entry in the run's results.json, and the model card in its encoder/; see docs/evaluation.md
"""

from ssl_blocks.evaluate import main

if __name__ == "__main__":
    raise SystemExit(main())
