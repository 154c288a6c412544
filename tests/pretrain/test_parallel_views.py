"""Centres and teacher are those of all processes together."""

import csv
from pathlib import Path

import pytest
import torch

from tests.pretrain.small import final
from tests.pretrain.two_views import APART, CASES, train


@pytest.fixture(scope="module")
def distilled(divided: Path) -> Path:
    """All cases, trained by two processes."""
    return divided / "views"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """The run of one process, with images kept apart or not."""
    folder = tmp_path_factory.mktemp("alone")
    return {apart: train(folder, f"apart-{apart}", *[APART] * apart) for apart in (False, True)}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_centres_teacher_and_losses_of_one(
    case: str, distilled: Path, alone: dict[bool, Path]
) -> None:
    folders = alone[APART in CASES[case]], distilled / case
    weights = [final(folder)["state_dict"] for folder in folders]
    assert weights[0].keys() == weights[1].keys()
    for name in ("model.center.value", "model.region_center.value"):
        assert weights[0][name].abs().max() > 1e-3
        # with the centre of one process alone, or with means of other batches, it would be far off
        torch.testing.assert_close(weights[1][name], weights[0][name], rtol=1e-3, atol=1e-5)
    for name, weight in weights[0].items():
        if "qkv.bias" not in name:  # gradients of keys' biases are rounding errors, of which AdamW makes full steps
            torch.testing.assert_close(weights[1][name], weight, rtol=1e-3, atol=2e-4)
    losses = []
    for folder in folders:
        with (folder / "metrics.csv").open() as file:
            losses.append([float(row["loss"]) for row in csv.DictReader(file) if row["loss"]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
