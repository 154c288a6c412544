"""gathered brings the rows of all processes together, and gradients back."""

import torch

from ssl_blocks.parts import gathered
from tests.parts.two_processes import batch, covariance, gradients


def test_alone_it_is_the_tensor_itself():
    x = torch.ones(2, 3)
    assert gathered(x) is x


def test_two_processes_have_rows_loss_and_gradients_of_one(divided):
    rows, loss, expected = gradients(batch())
    halves = [covariance(half) for half in rows.chunk(2)]
    assert not torch.allclose(sum(halves) / 2, loss)  # a mean over processes would be another loss
    for rank in range(2):
        seen, found_loss, found = torch.load(divided / "gathered" / f"{rank}.pt")
        torch.testing.assert_close(seen, rows)  # in the order of ranks
        torch.testing.assert_close(found_loss, loss)
        for ours, theirs in zip(found, expected, strict=True):
            assert theirs.abs().max() > 1e-4
            torch.testing.assert_close(ours, theirs)
