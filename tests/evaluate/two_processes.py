"""Evaluate the first of the trained encoders as torchrun starts it; run by tests/two_processes.py."""

import os
import runpy
import socket
import sys
from contextlib import redirect_stdout
from pathlib import Path
from unittest import mock

import pytest
import torch.distributed as dist

SCRIPT = Path(__file__).parents[2] / "examples" / "evaluate.py"


def meet_elsewhere() -> None:
    """End the group, and agree on a port for the next one: the launcher still knows the addresses of the first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = [free.getsockname()[1]]
    dist.broadcast_object_list(port)
    dist.destroy_process_group()
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port[0]), "TORCHELASTIC_USE_AGENT_STORE": "False"}


def main(folder: Path) -> None:
    rank, run = dist.get_rank(), folder.parent / "training" / "blobs"
    meet_elsewhere()  # the command connects the processes itself
    arguments = ["knn", str(run), f"--output={folder / 'scores.json'}", "--device=cpu", "--precision=fp32"]
    with (folder / f"{rank}.txt").open("w") as said, redirect_stdout(said), mock.patch.object(sys, "argv"):
        sys.argv = [str(SCRIPT), *arguments]
        with pytest.raises(SystemExit, match=r"^0$"):
            runpy.run_path(str(SCRIPT), run_name="__main__")
