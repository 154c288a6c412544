"""Runs whose objective compares views: in memory and streamed, interrupted, and dry."""

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import ssl_blocks as sb
from ssl_blocks.cli import load_config, main
from ssl_blocks.data import Augmentation, ColorChanges, ImageData, ImageShape, MultiCrop, RandomResizedCropFlip
from ssl_blocks.engine.errors import RunStopped
from ssl_blocks.engine.loop import Loop
from ssl_blocks.pretrain import PretrainModule, Recipe, Run, RunConfig, dryrun
from ssl_blocks.pretrain.estimate import activation_bytes, count_flops
from ssl_blocks.pretrain.resume import stored_config
from tests.pretrain.small import BARE, differences, final
from tests.pretrain.test_module import Recorder, fit_loop, small_objective, some_config
from tests.recipes import some_data

pytestmark = pytest.mark.process  # takes long

NUM_STEPS = 4


class PullTogether(sb.Objective):
    """Makes the features of every view those of the first one."""

    takes_views = True

    def __init__(self, encoder: sb.encoders.FeatureEncoder) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.dim, 8)
        self.seen: list[sb.Views] = []
        self.modes: list[bool] = []

    def draw(self, images, *, generator=None):
        assert isinstance(images, sb.Views)

    def forward(self, images, draw=None):
        self.seen.append(images)
        self.modes.append(self.training)
        first, *others = (self.head(self.encoder.features(view)) for view in images.images)
        rows = torch.stack([(other - first).square().mean(-1) for other in others], dim=1)[..., None]
        zeros = torch.zeros(rows.shape[:2], dtype=torch.int64, device=rows.device)
        return sb.ObjectiveOutput(
            loss=rows.mean(),
            predictions=rows,
            targets=torch.zeros_like(rows),
            index=zeros,
            step=zeros,
            is_target=torch.ones_like(zeros, dtype=torch.bool),
            draw=draw,
        )


class ViewsConfig(RunConfig):
    """Two global views and some local ones, of one size."""

    num_local: int = 2

    def augmentation(self, shape: ImageShape, mean: Sequence[float], std: Sequence[float]) -> Augmentation:
        size = (shape.height, shape.width)
        return MultiCrop(size, size, num_local=self.num_local, mean=mean, std=std)


def assemble(config: RunConfig, data: ImageData) -> PullTogether:
    shape = data.shape
    return PullTogether(config.encoder.build(image_size=(shape.height, shape.width), channels=shape.channels))


def arguments(*more: str) -> list[str]:
    sizes = ["--encoder.patch_size=4", "--encoder.depth=2", "--encoder.width=16", "--encoder.heads=2"]
    schedule = ["--trainer.epochs=2", "--optimizer.warmup_epochs=0.5", "--optimizer.weight_decay_end=0.4"]
    data = ["--data.max_train=64", "--data.max_test=32", "--trainer.device=cpu", "--name=run", *BARE]
    options = [*sizes, "--optimizer.batch_size=32", *schedule, *data, *more]
    return list({option.partition("=")[0]: option for option in options}.values())  # the last one counts


def prepare(folder: Path, *more: str, build: Callable = assemble, resume: bool | None = None) -> Run:
    config = load_config(Recipe("views", ViewsConfig, assemble, folder), arguments(f"--output_dir={folder}", *more))
    return Run.prepare(config, build, resume=resume)


def stopping(at_step: int) -> Callable:
    """An ``assemble`` whose objective asks the run to stop after this many steps."""

    def build(config: RunConfig, data: ImageData) -> PullTogether:
        objective, steps = assemble(config, data), []

        def after_step() -> None:
            steps.append(1)
            if len(steps) == at_step:
                os.kill(os.getpid(), signal.SIGTERM)

        objective.after_step = after_step
        return objective

    return build


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    return prepare(tmp_path_factory.mktemp("whole")).fit()


def test_an_interrupted_run_on_views_ends_in_the_same_bits(whole: Path, tmp_path: Path):
    with pytest.raises(RunStopped):
        prepare(tmp_path / "cut", build=stopping(3)).fit()
    resumed = prepare(tmp_path / "cut", resume=True).fit()
    assert final(resumed)["global_step"] == NUM_STEPS
    assert differences(final(whole), final(resumed)) == []
    assert (whole / "metrics.csv").read_text() == (resumed / "metrics.csv").read_text()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Colour pictures of two kinds."""
    numbers = np.random.default_rng(0)
    for split, number in (("train", 16), ("test", 4)):
        for kind in ("a", "b"):
            (tmp_path / "pictures" / split / kind).mkdir(parents=True)
            for i in range(number):
                pixels = numbers.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "pictures" / split / kind / f"{i}.png")
    return tmp_path / "pictures"


def test_views_of_streamed_images_are_those_of_images_in_memory(pictures: Path, tmp_path: Path):
    """Files of the size that is trained on are not resized, so that both hold the same pixels."""
    runs = {}
    for storage in ("memory", "stream"):
        run = prepare(
            tmp_path / storage,
            f"--data.name=imagefolder:{pictures}",
            "--data.image_size=8",
            f"--data.storage={storage}",
            "--data.workers=0",
            "--optimizer.batch_size=8",
            "--trainer.epochs=1",
        )
        assert run.data.is_streamed is (storage == "stream")
        run.fit()
        runs[storage] = run.module.objective.seen
    assert len(runs["memory"]) == len(runs["stream"])
    scale = None
    for held, streamed in zip(runs["memory"], runs["stream"], strict=True):
        assert (held.num_global, len(held.images)) == (2, 4)
        for one, other in zip(held.images, streamed.images, strict=True):
            torch.testing.assert_close(one, other)
            scale = one.std()
    assert scale is not None
    assert scale > 0.1


def test_the_trial_hands_over_views_of_two_images_in_evaluation_mode(tmp_path: Path):
    run = prepare(tmp_path)
    objective = run.module.objective
    assert objective.modes == [False]
    assert [tuple(view.shape) for view in objective.seen[0].images] == [(2, 1, 8, 8)] * 4
    assert objective.training


def test_views_that_do_not_fit_the_encoder_are_refused_before_anything_is_written(tmp_path: Path):
    class Misfit(ViewsConfig):
        def augmentation(self, shape: ImageShape, mean: Sequence[float], std: Sequence[float]) -> Augmentation:
            return MultiCrop(12, 8, mean=mean, std=std)

    config = load_config(Recipe("views", Misfit, assemble, tmp_path), arguments(f"--output_dir={tmp_path}"))
    with pytest.raises(ValueError, match="12"):
        Run.prepare(config, assemble)
    assert list(tmp_path.iterdir()) == []


class Doubled(RunConfig):
    def augmentation(self, shape: ImageShape, mean: Sequence[float], std: Sequence[float]) -> Augmentation:
        return MultiCrop((shape.height, shape.width), 4, num_local=1, mean=mean, std=std)


def test_an_objective_of_single_images_gets_the_first_global_view():
    from ssl_blocks.data import RunSampler, to_float
    from ssl_blocks.randomness import seeded_generator

    data, recorder = some_data(16), Recorder(small_objective())
    config = Doubled.model_validate(some_config().model_dump())
    fit_loop(Loop(PretrainModule(recorder, data, config)))
    seen = [value for name, value in recorder.calls if name == "forward"]
    for step, places in enumerate(RunSampler(16, 8, seed=0, epochs=2)):
        plain = to_float(data.train.images[[place.image for place in places]], data.mean, data.std)
        views = MultiCrop(16, 4, num_local=1, mean=data.mean, std=data.std)
        assert torch.equal(seen[step], views(plain, generator=seeded_generator("cpu", 0, 0, step)).images[0])


def test_without_a_word_runs_are_augmented_by_random_crops():
    crop = RunConfig(name="x", data={"crop_scale": (0.3, 0.8), "flip": False}).augmentation(
        ImageShape(3, 16, 12), (0.5,) * 3, (0.5,) * 3
    )
    assert isinstance(crop, RandomResizedCropFlip)
    assert (crop.size, crop.scale, crop.flip) == ((16, 12), (0.3, 0.8), False)
    spoilt = RunConfig.model_construct(data=RunConfig(name="x").data.model_copy(update={"crop_scale": (0.8, 0.3)}))
    with pytest.raises(ValueError, match=r"^data.crop_scale: scale=\(0.8, 0.3\)"):
        spoilt.augmentation(ImageShape(3, 16, 12), (0.5,) * 3, (0.5,) * 3)


def test_flops_and_memory_count_every_view():
    encoder = sb.encoders.timm_vit(image_size=8, patch_size=4, depth=1, embed_dim=16, num_heads=2)
    shape = ImageShape(3, 8, 8)
    objective = PullTogether(encoder)
    costs = {}
    for num_local in (0, 2):
        half = (0.5,) * 3
        crops = MultiCrop(8, 8, num_local=num_local, mean=half, std=half, colors=ColorChanges())
        flops = count_flops(objective, shape, crops)
        costs[num_local] = (flops.forward, flops.backward, activation_bytes(objective, shape, "fp32", crops).per_image)
    for none, two in zip(costs[0], costs[2], strict=True):
        assert two == pytest.approx(2 * none, rel=0.02)
    with torch.no_grad():
        assert objective(sb.Views((torch.zeros(1, *shape),) * 4, 2)).loss == 0  # the objective itself stays real


def test_estimates_of_single_images_need_no_augmentation():
    objective, shape = small_objective(), ImageShape(3, 16, 16)
    crops = MultiCrop(8, 8, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert count_flops(objective, shape) == count_flops(objective, shape, crops)


def test_dry_run_of_views(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dryrun, "_memory", lambda *_: "")  # in all views: see above
    texts = []
    for number in (0, 1):
        argv = [*arguments(f"--num_local={number}", "--encoder.depth=1"), "--dry-run"]
        assert main(Recipe("views", ViewsConfig, assemble, tmp_path), argv) == 0
        texts.append(capsys.readouterr().out)
    assert list(tmp_path.iterdir()) == []
    forward = [float(text.split("forward")[1].split()[0]) for text in texts]
    assert forward[1] == pytest.approx(1.5 * forward[0], rel=0.02)
    assert "segments" not in texts[0]


def test_weight_decay_is_constant_unless_an_end_is_given():
    weights = []
    for options in ({}, {"weight_decay_end": 0.05}, {"weight_decay_end": 5.0}):
        recorder = Recorder(small_objective())
        fit_loop(Loop(PretrainModule(recorder, some_data(16), some_config(**options))))
        weights.append(recorder.inner.head.weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_end_of_weight_decay_is_part_of_a_runs_configuration(whole: Path):
    assert stored_config(whole)["optimizer"]["weight_decay_end"] == 0.4
    with pytest.raises(ValueError, match=r"optimizer.weight_decay_end=0.1 \(the run has 0.4\)"):
        prepare(whole.parent, "--optimizer.weight_decay_end=0.1", resume=True)
