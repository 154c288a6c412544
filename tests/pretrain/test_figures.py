"""The pictures of a run say what was predicted, and how training went."""

from functools import partial
from pathlib import Path

import pytest
import torch

import ssl_blocks as sb
from ssl_blocks.data import MultiCrop, denormalize, to_float
from ssl_blocks.evaluation import Scores
from ssl_blocks.pretrain import figures
from ssl_blocks.randomness import seeded_generator
from tests.recipes import build, some_data


@pytest.mark.parametrize(
    ("partitioner", "normalize"), [(sb.SquarePartitioner(sides=(2,)), False), (sb.BlobPartitioner(counts=(2,)), True)]
)
def test_reconstructions_show_guesses_and_mark_what_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, partitioner: sb.parts.SegmentPartitioner, normalize: bool
) -> None:
    shown = {}
    draw_it = figures.draw_reconstructions

    def spy(images, targets, predictions, known, grid):
        shown.update(images=images, targets=targets, predictions=predictions, known=known)
        return draw_it(images, targets, predictions, known, grid)

    monkeypatch.setattr(figures, "draw_reconstructions", spy)
    data, objective = some_data(), build(partitioner, normalize=normalize)
    objective.train()
    objective.encoder.module.norm.eval()
    modes = [part.training for part in objective.modules()]
    files = figures.write_figures(objective, data, tmp_path)
    assert modes == [part.training for part in objective.modules()]  # left as they were
    assert all(file.stat().st_size > 0 for file in files)

    split = data.test.images[torch.linspace(0, 7, figures.NUM_EXAMPLES).long()]
    pictures = denormalize(to_float(split, data.mean, data.std), data.mean, data.std)
    torch.testing.assert_close(shown["images"], pictures)
    torch.testing.assert_close(shown["targets"], pictures, atol=1e-4, rtol=0)
    differs = objective.tokenizer((shown["predictions"] - shown["targets"]).abs()).flatten(2).amax(-1) > 1e-3
    assert torch.equal(differs, ~shown["known"])
    assert shown["known"].any(1).all()


def test_an_objective_without_segments_has_no_such_figures(tmp_path: Path) -> None:
    class Other(sb.Objective):
        def draw(self, images, *, generator=None):
            return None

        def forward(self, images, draw=None):
            raise AssertionError("is not asked")

    assert figures.write_figures(Other(), some_data(), tmp_path / "figures") == []
    assert not (tmp_path / "figures").exists()


def test_masked_autoencoding_shows_its_reconstructions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {}
    draw_it = figures.draw_reconstructions

    def spy(images, targets, predictions, known, grid):
        shown.update(targets=targets, predictions=predictions, known=known)
        return draw_it(images, targets, predictions, known, grid)

    monkeypatch.setattr(figures, "draw_reconstructions", spy)
    base = build(sb.SquarePartitioner(sides=(2,)))
    decoder = sb.MaskTokenDecoder(grid=base.encoder.grid, dim=16, depth=1, num_heads=2)
    mae = sb.mae(encoder=base.encoder, tokenizer=base.tokenizer, target=base.target, decoder=decoder)
    assert figures.write_figures(mae, some_data(), tmp_path) == [tmp_path / "reconstructions.png"]
    assert shown["known"].sum(1).tolist() == [16] * figures.NUM_EXAMPLES  # a quarter of 64 tokens
    differs = mae.tokenizer((shown["predictions"] - shown["targets"]).abs()).flatten(2).amax(-1) > 1e-3
    assert torch.equal(differs, ~shown["known"])


@pytest.mark.parametrize("dropout", [0.0, 0.9])
def test_puzzles_are_shown_shuffled_as_guessed_and_solved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dropout: float
) -> None:
    shown = {}
    draw_it = figures.draw_puzzles

    def spy(patches, shuffled, guessed, grid):
        shown.update(patches=patches, shuffled=shuffled, guessed=guessed)
        return draw_it(patches, shuffled, guessed, grid)

    monkeypatch.setattr(figures, "draw_puzzles", spy)
    data, tokenizer = some_data(), sb.PatchTokenizer.from_grid(image_size=16, grid=3, crop=1)
    torch.manual_seed(0)
    encoder = sb.encoders.PostNormTransformer(grid=3, patch=4, depth=1, num_heads=2, dropout=0.5)
    puzzle = sb.PatchPuzzle(encoder=encoder, tokenizer=tokenizer, patch_dropout=dropout)
    assert figures.write_figures(puzzle, data, tmp_path) == [tmp_path / "puzzles.png"]

    normalised = to_float(data.test.images[torch.linspace(0, 7, figures.NUM_EXAMPLES).long()], data.mean, data.std)
    pictures = denormalize(normalised, data.mean, data.std)
    torch.testing.assert_close(shown["patches"], tokenizer(pictures))
    assert shown["shuffled"].sort(1).values.tolist() == [list(range(9))] * figures.NUM_EXAMPLES
    assert len(set(map(tuple, shown["shuffled"].tolist()))) == figures.NUM_EXAMPLES
    puzzle.eval()
    predictions = puzzle(normalised, puzzle.keep_all(normalised)).predictions
    assert torch.equal(shown["guessed"], puzzle.target.arrange(predictions))


def test_puzzles_with_a_target_of_another_kind_have_no_picture(tmp_path: Path) -> None:
    class Rows:
        """Which row a patch lies in."""

        dim = 4

        def __call__(self, images):
            return torch.eye(4).repeat_interleave(4, 0).expand(len(images), -1, -1)

        def to_pixels(self, predictions, images):
            raise AssertionError("is not asked")

    tokenizer = sb.PatchTokenizer(image_size=16, patch_size=4)
    encoder = sb.encoders.PostNormTransformer(grid=4, patch=4, depth=1, num_heads=2)
    puzzle = sb.PatchPuzzle(encoder=encoder, tokenizer=tokenizer, target=Rows())
    assert figures.write_figures(puzzle, some_data(), tmp_path) == []


def test_distillation_shows_which_regions_match(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {}
    draw_it = figures.draw_matches

    def spy(first, second, match, grids, *, others):
        shown.update(first=first, second=second, match=match, grids=grids, others=others)
        return draw_it(first, second, match, grids, others=others)

    monkeypatch.setattr(figures, "draw_matches", spy)
    size = {"patch_size": 2, "window_size": 2, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2)}
    head = partial(sb.dino_head, hidden_dim=8, bottleneck_dim=4)
    encoder = sb.encoders.timm_regions(image_size=16, **size)
    objective = sb.ViewRegionDistillation(encoder=encoder, out_dim=8, head=head)
    data = some_data()
    augment = MultiCrop(16, 8, num_local=1, mean=data.mean, std=data.std)
    assert figures.write_figures(objective, data, tmp_path, augment) == [tmp_path / "regions.png"]
    images = to_float(data.test.images[torch.linspace(0, 7, figures.NUM_EXAMPLES).long()], data.mean, data.std)
    views = augment(images, generator=seeded_generator("cpu", 0))
    pictures = [denormalize(view, data.mean, data.std).clamp(0, 1)[:4] for view in views.images]
    for picture, name in ((pictures[0], "first"), (pictures[1], "second")):
        torch.testing.assert_close(shown[name], picture)
    torch.testing.assert_close(shown["others"][0], pictures[2])
    objective.eval()
    maps = [objective.encoder.regions(view[:4]).map for view in views.images[:2]]
    assert torch.equal(shown["match"], sb.parts.match_regions(*maps))


def test_another_kind_of_objective_brings_its_own_pictures(tmp_path: Path) -> None:
    class Own(sb.Objective):
        def draw(self, images, *, generator=None):
            return None

        def forward(self, images, draw=None):
            raise AssertionError("is not asked")

    @figures.draw_examples.register
    def _(objective: Own, images, data, folder):
        return [folder / f"{len(images)}.png"]

    assert figures.write_figures(Own(), some_data(), tmp_path) == [tmp_path / f"{figures.NUM_EXAMPLES}.png"]


def test_curves_compare_with_untrained_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}
    draw_it = figures.draw_curves

    def spy(runs, *, references):
        asked.update(runs=runs, references=references)
        return draw_it(runs, references=references)

    monkeypatch.setattr(figures, "draw_curves", spy)
    run = tmp_path / "mine"
    run.mkdir()
    (run / "metrics.csv").write_text("step,epoch,loss,knn\n0,1.0,0.9,0.25\n")
    names = ("raw pixels", "random encoder", "pretrained encoder")
    scores = [Scores(name, knn=i / 10, shots=10, fewshot=None, num_train=9, num_test=9) for i, name in enumerate(names)]
    assert figures.write_curves(run, scores).stat().st_size > 0
    assert asked == {"runs": {"mine": run / "metrics.csv"}, "references": {"raw pixels": 0.0, "random encoder": 0.1}}


class Brightest:
    """Segments that depend on the image: the brighter half of the tokens is given."""

    def __call__(self, images, grid, *, generator=None):
        light = sb.PatchTokenizer(image_size=16, patch_size=2)(images).mean((2, 3, 4))
        ids = (light.argsort(1).argsort(1) < grid.num_tokens // 2).long()
        return sb.Segments(levels=(ids,), counts=(2,), step_sizes=(32, 32))


class Edges:
    """A target without pictures."""

    dim = 2

    def __call__(self, images):
        patches = sb.PatchTokenizer(image_size=16, patch_size=2)(images)
        return torch.stack([patches.std((2, 3, 4)), patches.mean((2, 3, 4))], -1)


def test_segments_that_depend_on_the_image_are_drawn_of_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = {}
    draw_it = figures.draw_reconstructions

    def spy(images, targets, predictions, known, grid):
        shown.update(images=images, known=known)
        return draw_it(images, targets, predictions, known, grid)

    monkeypatch.setattr(figures, "draw_reconstructions", spy)
    objective = build(Brightest(), serializer=sb.OrderedSerializer())
    assert figures.write_figures(objective, some_data(), tmp_path) == [tmp_path / "reconstructions.png"]
    light = objective.tokenizer(shown["images"]).mean((2, 3, 4))
    assert all(row[known].min() >= row[~known].max() for row, known in zip(light, shown["known"], strict=True))


def test_a_target_without_pictures_is_no_failure(tmp_path: Path) -> None:
    base = build(sb.SquarePartitioner(sides=(2,)))
    objective = sb.SegmentPrediction(
        encoder=base.encoder,
        tokenizer=base.tokenizer,
        partitioner=base.partitioner,
        reader=base.reader,
        target=Edges(),
    )
    files = figures.write_figures(objective, some_data(), tmp_path)
    assert {file.name for file in files} == {"segments.png", "reading_order.gif"}


def test_any_objective_that_predicts_what_has_pictures_shows_them(tmp_path: Path) -> None:
    class Copy(sb.Objective):
        """Predicts the mean of all targets of an image at every other position."""

        def __init__(self):
            super().__init__()
            self.tokenizer = sb.PatchTokenizer(image_size=16, patch_size=2)
            self.target = sb.PixelTarget(self.tokenizer)

        def draw(self, images, *, generator=None):
            return torch.arange(0, 64, 2).expand(len(images), -1)

        def forward(self, images, draw=None):
            targets = self.target(images)
            rows = targets.mean(1, keepdim=True).expand(-1, 32, -1)
            is_target = torch.ones_like(draw, dtype=torch.bool)
            wanted = sb.values.gather_tokens(targets, draw)
            loss = sb.predicted_mse(rows, wanted, is_target)
            return sb.ObjectiveOutput(loss, rows, wanted, draw, torch.zeros_like(draw), is_target, draw)

    assert figures.write_figures(Copy(), some_data(), tmp_path) == [tmp_path / "reconstructions.png"]


def features_shown(objective: sb.Objective, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    shown = {}
    draw_it = figures.draw_features

    def spy(images, features, grid, *, attention):
        shown.update(features=features, grid=grid, attention=attention)
        return draw_it(images, features, grid, attention=attention)

    monkeypatch.setattr(figures, "draw_features", spy)
    files = figures.write_features(objective, some_data(), folder)
    assert files == ([folder / "features.png"] if shown else [])
    return shown


def test_features_of_any_encoder_with_places_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = some_data()
    images = to_float(data.test.images[torch.linspace(0, 7, figures.NUM_EXAMPLES).long()], data.mean, data.std)
    objective = build(sb.SquarePartitioner(sides=(2,)), class_token=True, depth=1)
    shown = features_shown(objective, tmp_path, monkeypatch)
    assert shown["grid"] == sb.Grid(8, 8)
    objective.eval()
    torch.testing.assert_close(shown["features"].mean(1), objective.encoder.features(images))
    weights = sb.encoders.attention_weights(objective.encoder, images)
    torch.testing.assert_close(shown["attention"], weights[:, :, 0, 1:].mean(1))
    assert features_shown(build(sb.SquarePartitioner(sides=(2,)), depth=1), tmp_path, monkeypatch)["attention"] is None

    class Regions(sb.Objective):
        encoder = sb.encoders.TokenRegions(objective.encoder)

        def draw(self, images, *, generator=None):
            return None

        def forward(self, images, draw=None):
            raise AssertionError("is not asked")

    shown = features_shown(Regions(), tmp_path, monkeypatch)
    torch.testing.assert_close(shown["features"], Regions.encoder.regions(images).map)


def test_an_encoder_without_places_has_no_picture_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Pooled(sb.Objective):
        class encoder:  # noqa: N801
            dim, channels, module = 4, 3, torch.nn.Identity()

            def features(self, images):
                raise AssertionError("is not asked")

        def draw(self, images, *, generator=None):
            return None

        def forward(self, images, draw=None):
            raise AssertionError("is not asked")

    Pooled.encoder = Pooled.encoder()
    assert features_shown(Pooled(), tmp_path, monkeypatch) == {}
    assert list(tmp_path.iterdir()) == []


def test_of_a_position_that_several_rows_predict_the_mean_is_shown() -> None:
    class Twice(sb.Objective):
        """Predicts position 3 twice, and has a row that is no target."""

        def __init__(self):
            super().__init__()
            self.tokenizer = sb.PatchTokenizer(image_size=16, patch_size=8)
            self.target = sb.PixelTarget(self.tokenizer)

        def draw(self, images, *, generator=None):
            return None

        def forward(self, images, draw=None):
            index = torch.tensor([[3, 3, 1, 0]]).expand(len(images), -1)
            rows = torch.tensor([0.2, 0.4, 0.1, torch.nan])[None, :, None].expand(len(images), -1, 192)
            is_target = torch.tensor([[True, True, True, False]]).expand(len(images), -1)
            return sb.ObjectiveOutput(rows[0, 0, 0], rows, rows, index, torch.zeros_like(index), is_target, None)

    data, batch = some_data(), torch.zeros(2, 3, 16, 16)
    shown, wanted, hidden = figures.in_place(Twice(), batch, None, data)
    assert hidden.tolist() == [[False, True, False, True]] * 2
    found = Twice().tokenizer(shown)[0].flatten(1).mean(1)
    torch.testing.assert_close(found, 0.5 + 0.25 * torch.tensor([0.0, 0.1, 0.0, 0.3]))
    assert torch.equal(wanted, torch.full_like(wanted, 0.5))
