"""gathered brings the rows of all processes together, and gradients back."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from ssl_blocks import gathered
from tests.parts.two_processes import batch, covariance, gradients

ROOT = Path(__file__).parents[2]


def test_alone_it_is_the_tensor_itself():
    x = torch.ones(2, 3)
    assert gathered(x) is x


def test_two_processes_have_rows_loss_and_gradients_of_one(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = ["-m", "torch.distributed.run", "--nproc-per-node=2", "tests/parts/two_processes.py", str(tmp_path)]
    run = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert run.returncode == 0, run.stderr[-4000:]
    rows, loss, expected = gradients(batch())
    halves = [covariance(half) for half in rows.chunk(2)]
    assert not torch.allclose(sum(halves) / 2, loss)  # a mean over processes would be another loss
    for rank in range(2):
        seen, found_loss, found = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(seen, rows)  # in the order of ranks
        torch.testing.assert_close(found_loss, loss)
        for ours, theirs in zip(found, expected, strict=True):
            assert theirs.abs().max() > 1e-4
            torch.testing.assert_close(ours, theirs)
