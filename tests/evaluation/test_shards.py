"""Processes that hold parts of bank and queries find what one finds with all of them."""

from pathlib import Path

import pytest
import torch

from ssl_blocks.evaluation import knn_accuracy
from tests.evaluation.test_knn import reference
from tests.evaluation.two_processes import ARGUMENTS, BANK, CUTS, QUERIES, draw


@pytest.fixture(scope="module")
def heard(divided: Path) -> list[tuple[dict[str, float], list[str]]]:
    """Accuracies and errors of two processes."""
    return [torch.load(divided / "shards" / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("sharded", ["bank", "queries", "both"])
def test_two_processes_find_what_one_finds(sharded: str, heard: list[tuple[dict[str, float], list[str]]]) -> None:
    data = (*draw(BANK, 0), *draw(QUERIES, 1))
    expected = knn_accuracy(*data, **ARGUMENTS)
    assert expected == pytest.approx(reference(*data, ARGUMENTS["k"], 0.07))
    # a part alone would find something else, so that an exchange that does not happen would show
    assert knn_accuracy(data[0][:20], data[1][:20], *data[2:], **ARGUMENTS) != expected
    assert knn_accuracy(*data[:2], data[2][:11], data[3][:11], **ARGUMENTS) != expected
    for found, _ in heard:
        for at in range(len(CUTS)):
            assert found[f"{sharded}-{at}"] == expected, (sharded, CUTS[at])


def test_all_processes_hear_of_an_error_in_one(heard: list[tuple[dict[str, float], list[str]]]) -> None:
    for _, errors in heard:
        assert len(errors) == 3
        assert errors[0].startswith("process 1: bank_labels must be class indices from 0, but the smallest is -10")
        assert errors[1].startswith("process 0: bank_labels of shape (19,) must be one for each")
        assert errors[2] == f"k={BANK + 1} must be at least 1 and at most the size of the bank ({BANK})"


def test_shards_need_processes() -> None:
    with pytest.raises(ValueError, match=r"need torch\.distributed\.init_process_group before"):
        knn_accuracy(*draw(10, 0), *draw(5, 1), k=1, bank_sharded=True)
