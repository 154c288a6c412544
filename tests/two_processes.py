"""Everything that two processes must do as one does, in one launch: it is the start that takes long.

Run by the fixture ``divided``, as torchrun does it: a folder, in which every part writes what came of it.
"""

import os
import sys
import time
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.utils.tensorboard  # as what else is imported late: once, and not by every process
from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, parse_args

from ssl_blocks.engine import fit  # noqa: F401
from ssl_blocks.pretrain import callbacks, figures  # noqa: F401
from tests.data import two_processes as data
from tests.evaluate import two_processes as command
from tests.evaluation import two_processes as shards
from tests.gallery import two_processes as gallery
from tests.objectives import two_processes as sums
from tests.parts import two_processes as rows
from tests.pretrain import two_processes as training, two_shards as streams, two_views as views

PARTS = {
    "data": data,
    "gathered": rows,
    "sums": sums,
    "shards": shards,
    "training": training,
    "views": views,
    "streams": streams,
    "gallery": gallery,
    "command": command,  # last: it ends the group
}


def work(folder: Path) -> None:
    """Do all parts, in each of the processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")  # once for all parts
    for name, part in PARTS.items():
        (folder / name).mkdir(exist_ok=True)
        began = time.monotonic()
        part.main(folder / name)
        print(f"{name}: {time.monotonic() - began:.1f} s", flush=True)


def launch(folder: Path, log: Path) -> None:
    """Do what torchrun does, but by forks: what its processes import is imported already."""
    with log.open("w") as said:
        for stream in (sys.__stdout__, sys.__stderr__):
            os.dup2(said.fileno(), stream.fileno())
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    warnings.simplefilter("default")
    options = ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "--nproc-per-node=2", __file__]
    config, *_ = config_from_args(parse_args(options))
    config.start_method = "fork"
    elastic_launch(config, work)(folder)
