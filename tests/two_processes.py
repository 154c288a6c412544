"""Everything that two processes must do as one does, in one launch: it is the start that takes long.

Run by the fixture ``divided``, by way of torchrun: a folder, in which every part writes what came of it.
"""

import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

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

if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")  # once for all parts
    for name, part in PARTS.items():
        folder = Path(sys.argv[1]) / name
        folder.mkdir(exist_ok=True)
        began = time.monotonic()
        part.main(folder)
        print(f"{name}: {time.monotonic() - began:.1f} s")
