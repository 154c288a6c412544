"""A run that is killed again and again ends in the same bits; in a file of its own, for it takes long.

Every process is forked off this one, which has imported everything. Half of the kills come after a random time; the
other half at file operations spread over two checkpoints, halfway through writing one, say.
"""

import json
import multiprocessing
import os
import random
import signal
from pathlib import Path
from threading import Timer

import pytest
import torch

from ssl_blocks.engine.checkpoints import checkpoint_path
from tests.pretrain.small import NUM_STEPS, differences, final, prepare

KILLS = 6
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


def go_on(folder: Path, operation: int | None) -> None:
    if operation is not None:
        kill_at(operation)
    prepare(folder, resume=True).fit()


@pytest.mark.process
def test_killed_again_and_again_a_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    whole, run, chance = prepare(tmp_path / "whole").fit(), tmp_path / "run", random.Random(0)
    took = json.loads((whole / "results.json").read_text())["seconds"]
    codes, ended = [], []
    for kill in range(KILLS + 1):
        operation = kill * NUM_OPERATIONS // KILLS if kill % 2 else None
        process = multiprocessing.get_context("fork").Process(target=go_on, args=(tmp_path, operation))
        process.start()
        timer = Timer(chance.uniform(0.1, 0.7) * took, process.kill)
        if operation is None and kill < KILLS:
            timer.start()
        process.join()
        timer.cancel()
        codes.append(process.exitcode)
        # at its end, or killed after training: begin another run, or, after some kills, let this one write its results
        if (run / "checkpoints" / LAST).is_file() and (process.exitcode == 0 or chance.random() < 0.7):
            ended.append(run.rename(tmp_path / f"finished-{kill}"))
    assert {*codes} == {0, -signal.SIGKILL}
    assert codes.count(-signal.SIGKILL) > 3
    assert codes[1::2].count(-signal.SIGKILL) > 1  # amid file operations
    for folder in ended:
        assert differences(final(whole), final(folder)) == []
        assert (folder / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
        assert not list(folder.rglob("*.tmp"))
