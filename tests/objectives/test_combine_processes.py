"""A sum of objectives trains in two processes as in one, though one of them counts unequally many tokens."""

import torch

from tests.objectives.two_processes import SIZE, gradients


def test_every_loss_is_divided_by_what_all_processes_predict(divided):
    loss, expected, _ = gradients(slice(0, SIZE))
    halves = [torch.load(divided / "sums" / f"{rank}.pt") for rank in range(2)]
    assert halves[0][2] != halves[1][2]  # so a mean of means would be another loss
    torch.testing.assert_close((halves[0][0] + halves[1][0]) / 2, loss)
    for _, found, _ in halves:
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
