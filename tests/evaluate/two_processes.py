"""Evaluate the first of the trained encoders as torchrun starts it; run by tests/two_processes.py."""

import runpy
import sys
from contextlib import redirect_stdout
from pathlib import Path
from unittest import mock

import pytest
import torch.distributed as dist

SCRIPT = Path(__file__).parents[2] / "examples" / "evaluate.py"


def main(folder: Path) -> None:
    rank, run = dist.get_rank(), folder.parent / "training" / "squares"
    dist.destroy_process_group()  # the command connects the processes itself
    arguments = ["knn", str(run), f"--output={folder / 'scores.json'}", "--device=cpu", "--precision=fp32"]
    with (folder / f"{rank}.txt").open("w") as said, redirect_stdout(said), mock.patch.object(sys, "argv"):
        sys.argv = [str(SCRIPT), *arguments]
        with pytest.raises(SystemExit, match=r"^0$"):
            runpy.run_path(str(SCRIPT), run_name="__main__")
