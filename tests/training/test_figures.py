"""The pictures of a run say what was predicted, and how training went."""

from pathlib import Path

import pytest
import torch

import ssl_blocks as sb
from ssl_blocks.data import denormalize, to_float
from ssl_blocks.evaluation import Scores
from ssl_blocks.training import figures
from tests.recipes import build, some_data


@pytest.mark.parametrize("partitioner", [sb.SquarePartitioner(sides=(2,)), sb.BlobPartitioner(counts=(5,))])
@pytest.mark.parametrize("normalize", [False, True])
def test_reconstructions_show_guesses_and_mark_what_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, partitioner: sb.SegmentPartitioner, normalize: bool
) -> None:
    shown = {}
    draw_it = figures.pixels.draw_reconstructions

    def spy(images, targets, predictions, known, grid):
        shown.update(images=images, targets=targets, predictions=predictions, known=known)
        return draw_it(images, targets, predictions, known, grid)

    monkeypatch.setattr(figures.pixels, "draw_reconstructions", spy)
    data, objective = some_data(), build(partitioner, normalize=normalize)
    files = figures.write_figures(objective, data, tmp_path)
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

    assert figures.write_figures(Other(), some_data(), tmp_path / "figures") == []
    assert not (tmp_path / "figures").exists()


def test_masked_autoencoding_shows_its_reconstructions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {}
    draw_it = figures.pixels.draw_reconstructions

    def spy(images, targets, predictions, known, grid):
        shown.update(targets=targets, predictions=predictions, known=known)
        return draw_it(images, targets, predictions, known, grid)

    monkeypatch.setattr(figures.pixels, "draw_reconstructions", spy)
    base = build(sb.SquarePartitioner(sides=(2,)))
    decoder = sb.MaskTokenDecoder(grid=base.encoder.grid, dim=16, depth=1, num_heads=2)
    mae = sb.MaskedAutoencoding(encoder=base.encoder, tokenizer=base.tokenizer, target=base.target, decoder=decoder)
    assert figures.write_figures(mae, some_data(), tmp_path) == [tmp_path / "reconstructions.png"]
    assert shown["known"].sum(1).tolist() == [16] * 6  # a quarter of 64 tokens
    differs = mae.tokenizer((shown["predictions"] - shown["targets"]).abs()).flatten(2).amax(-1) > 1e-3
    assert torch.equal(differs, ~shown["known"])


def test_the_mode_of_every_module_is_left_as_it_was(tmp_path: Path) -> None:
    objective = build(sb.SquarePartitioner(sides=(2,)))
    objective.train()
    objective.encoder.module.norm.eval()
    before = {name: part.training for name, part in objective.named_modules()}
    figures.write_figures(objective, some_data(), tmp_path)
    assert before == {name: part.training for name, part in objective.named_modules()}


def test_another_kind_of_objective_brings_its_own_pictures(tmp_path: Path) -> None:
    class Own(sb.ObjectiveModule):
        def draw(self, images, *, generator=None):
            return None

        def forward(self, images, draw=None):
            raise AssertionError("is not asked")

    @figures.draw_examples.register
    def _(objective: Own, images, data, folder):
        return [folder / f"{len(images)}.png"]

    assert figures.write_figures(Own(), some_data(), tmp_path) == [tmp_path / "6.png"]


def test_curves_compare_with_untrained_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}
    draw_it = figures.registry.draw_curves

    def spy(runs, *, references):
        asked.update(runs=runs, references=references)
        return draw_it(runs, references=references)

    monkeypatch.setattr(figures.registry, "draw_curves", spy)
    run = tmp_path / "mine"
    run.mkdir()
    (run / "metrics.csv").write_text("step,epoch,loss,knn\n0,1.0,0.9,0.25\n")
    names = ("raw pixels", "random encoder", "pretrained encoder")
    scores = [Scores(name=name, knn=i / 10, shots=10, fewshot=None) for i, name in enumerate(names)]
    assert figures.write_curves(run, scores).stat().st_size > 0
    assert asked == {"runs": {"mine": run / "metrics.csv"}, "references": {"raw pixels": 0.0, "random encoder": 0.1}}
