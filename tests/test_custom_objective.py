"""The tutorial's objective does what it says, with parts of the library and one mask of its own."""

import pytest
import torch

from examples import custom_objective as example
from ssl_blocks import SegmentDecoder
from ssl_blocks.data import load, to_float
from ssl_blocks.testing import assert_no_leak


def build():
    torch.manual_seed(0)
    return example.lonely_mae(16, 2, width=16, depth=2, heads=2)


def test_a_hidden_position_is_predicted_whatever_else_is_asked() -> None:
    objective, images = build().eval(), torch.randn(2, 1, 16, 16)
    draw = objective.draw(images)
    seen = {}
    decode = objective.reader.decoder.forward

    def spy(memories, masks, *, query_index, memory_index):
        seen.update(memories=memories, masks=masks, query_index=query_index, memory_index=memory_index)
        return decode(memories, masks, query_index=query_index, memory_index=memory_index)

    objective.reader.decoder.forward = spy
    objective(images, draw)
    assert isinstance(objective.reader.decoder, SegmentDecoder)
    places = {"query_index": seen["query_index"], "memory_index": seen["memory_index"]}
    together = decode(seen["memories"], seen["masks"], **places)
    alone = type(seen["masks"])(
        source=seen["masks"].source, target=seen["masks"].target[..., :1, :1], memory=seen["masks"].memory[..., :1, :]
    )
    one = decode(seen["memories"], alone, query_index=seen["query_index"][:, :1], memory_index=seen["memory_index"])
    torch.testing.assert_close(one[:, 0], together[:, 0], rtol=1e-4, atol=1e-5)


def test_it_leaks_nothing() -> None:
    objective = example.lonely_mae(8, 2, width=16, depth=2, heads=2)
    assert_no_leak(objective, torch.randn(2, 1, 8, 8), draws=16)


@pytest.mark.process
def test_the_plain_loop_lowers_the_loss() -> None:
    objective = example.lonely_mae(8, 2, width=32, depth=2, heads=2)
    data = load("digits", max_train=256)
    losses = example.train(objective, to_float(data.train.images, data.mean, data.std), 30)
    assert sum(losses[-10:]) / 10 < 0.8 * losses[0]


@pytest.mark.process
def test_the_whole_of_it_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "load", lambda name: load(name, max_train=100, max_test=50))
    example.main(steps=2)
    assert "no leak" in capsys.readouterr().out
