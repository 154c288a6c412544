"""Start a run in a process of its own again and again, kill it each time, and at last let it end.

Arguments: folder of runs, number of kills, seed. A process is forked off a parent that has imported everything,
because it has prepared a run itself, so that most of a process's life is training. Half of the kills come after a
random time; the other half at file operations spread over two checkpoints, halfway through writing one, say.
"""

import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import torch
import torch.utils.tensorboard  # imported by the parent, once

from ssl_blocks.engine.checkpoints import checkpoint_path, list_checkpoints
from tests.pretrain.small import NUM_STEPS, prepare

NUM_OPERATIONS = 16  # of two checkpoints
LAST = checkpoint_path(Path(), NUM_STEPS).name


def kill_at(operation: int) -> None:
    """Die at this file operation of a checkpoint, counted from 0, and in the middle of it where that is possible."""
    count = 0
    save, fsync, replace = torch.save, os.fsync, os.replace

    def die_if_due() -> None:
        nonlocal count
        count += 1
        if count > operation:
            os.kill(os.getpid(), signal.SIGKILL)

    class HalfWritten:
        """A file that ends when half of a checkpoint is in it."""

        def __init__(self, file) -> None:
            self.file, self.size = file, 0

        def write(self, data) -> int:
            self.size += len(data)
            written = self.file.write(data)
            if self.size > 50_000:
                self.file.flush()
                die_if_due()
                self.size = -(10**9)  # once a file
            return written

        def __getattr__(self, name):
            return getattr(self.file, name)

    def dying_save(content, file) -> None:
        save(content, HalfWritten(file))

    def dying_fsync(file) -> None:
        die_if_due()
        fsync(file)

    def dying_replace(old, new) -> None:
        die_if_due()
        replace(old, new)
        die_if_due()

    torch.save, os.fsync, os.replace = dying_save, dying_fsync, dying_replace


def child(folder: Path, operation: int | None) -> None:
    if operation is not None:
        kill_at(operation)
    run = prepare(folder, resume=True)
    run.fit()


def main(folder: Path, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    began = time.monotonic()
    prepare(folder / "timed").fit()  # imports everything, too
    began, took = time.monotonic(), time.monotonic() - began
    prepare(folder / "timed again").fit()
    took = min(took, time.monotonic() - began)
    chance = random.Random(seed)
    for kill in range(kills + 1):
        operation = kill * NUM_OPERATIONS // kills if kill % 2 and kill < kills else None
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                child(folder, operation)
                code = 0
            finally:
                os._exit(code)
        timer = threading.Timer(chance.uniform(0.1, 0.7) * took, os.kill, (pid, signal.SIGKILL))
        if operation is None and kill < kills:
            timer.start()
        _, status = os.waitpid(pid, 0)
        timer.cancel()
        how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
        print(f"{kill}: operation {operation}: {how}, {[p.name for p in list_checkpoints(folder / 'run')]}", flush=True)
        if how not in ("signal 9", "exit 0"):
            raise SystemExit(1)
        # at its end, or killed after training: begin another run, or, after some kills, let this one write its results
        ended = (folder / "run" / "checkpoints" / LAST).is_file()
        if kill < kills and ended and (how == "exit 0" or chance.random() < 0.7):
            (folder / "run").rename(folder / f"finished-{kill}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
