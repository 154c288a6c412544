"""Objectives compile into one graph, and compute the same."""

import pytest

EXACT = (
    "plain decoder, shared positions",
    "views and regions",
    "query stream, shared weights",
    "blobs, checkpointing",
)
SIXTEEN_BIT = (
    "masked, bf16",
    "puzzle, bf16",
    "query stream, bf16",
    "two streams, bf16",
    "squares, checkpointing, bf16",
)


@pytest.fixture
def results(compiled):
    """By case: differences to eager, counts of graphs and of parameters."""
    return compiled["objectives"]


def test_every_case_is_one_graph(results):
    assert set(results) == {*EXACT, *SIXTEEN_BIT}
    assert {result["graphs"] for result in results.values()} == {1}
    assert all(result["parameters"] > 10 for result in results.values())


@pytest.mark.parametrize("name", EXACT)
def test_compiled_loss_and_gradients_equal_eager(results, name):
    assert results[name]["loss"] < 1e-6
    assert results[name]["gradients"] < 1e-4


@pytest.mark.parametrize("name", SIXTEEN_BIT)
def test_compiled_loss_and_gradients_under_autocast_are_near_eager(results, name):
    assert results[name]["loss"] < 5e-3
    assert results[name]["gradients"] < 0.1
