"""What a run shows at its end says what was predicted."""

from pathlib import Path

import pytest
import torch

import ssl_blocks as sb
from ssl_blocks.data import denormalize, to_float
from ssl_blocks.training import report
from tests.recipes import build, some_data


@pytest.mark.parametrize("partitioner", [sb.SquarePartitioner(sides=(2,)), sb.BlobPartitioner(counts=(5,))])
@pytest.mark.parametrize("normalize", [False, True])
def test_reconstructions_show_guesses_and_mark_what_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, partitioner: sb.SegmentPartitioner, normalize: bool
) -> None:
    shown = {}
    draw_it = report.draw_reconstructions

    def spy(images, targets, predictions, known, grid):
        shown.update(images=images, targets=targets, predictions=predictions, known=known)
        return draw_it(images, targets, predictions, known, grid)

    monkeypatch.setattr(report, "draw_reconstructions", spy)
    data, objective = some_data(), build(partitioner, normalize=normalize)
    files = report.write_figures(objective, data, tmp_path)
    assert all(file.stat().st_size > 0 for file in files)

    split = data.test.images[torch.linspace(0, 7, 6).long()]
    pictures = denormalize(to_float(split, data.mean, data.std), data.mean, data.std)
    torch.testing.assert_close(shown["images"], pictures)
    torch.testing.assert_close(shown["targets"], pictures, atol=1e-4, rtol=0)
    differs = objective.tokenizer((shown["predictions"] - shown["targets"]).abs()).flatten(2).amax(-1) > 1e-3
    assert torch.equal(differs, ~shown["known"])
    assert shown["known"].any(1).all()


def test_an_objective_without_segments_has_no_such_figures(tmp_path: Path) -> None:
    class Other(sb.ObjectiveModule):
        def draw(self, images, *, generator=None):
            return None

        def forward(self, images, draw=None):
            raise AssertionError("is not asked")

    assert report.write_figures(Other(), some_data(), tmp_path / "figures") == []
    assert not (tmp_path / "figures").exists()
