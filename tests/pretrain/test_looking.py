"""Looking while it trains: what is measured and drawn, that it leaves no trace, and that it costs no run."""

import csv
import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ssl_blocks.data import MultiCrop, RandomResizedCropFlip, to_float
from ssl_blocks.engine.errors import RunStopped
from ssl_blocks.engine.late import Snapshot
from ssl_blocks.evaluation import feature_quality
from ssl_blocks.pretrain import looking
from ssl_blocks.pretrain.looking import QualitySample, untouched
from ssl_blocks.pretrain.scoring import Sample
from ssl_blocks.randomness import seeded_generator
from ssl_blocks.testing import assert_no_wait
from ssl_blocks.values import Views
from tests.pretrain.small import acting, differences, final, prepare
from tests.recipes import some_data

MEASURES = ("rankme", "effective_rank", "alpha_req", "uniformity", "alignment", "spread")
EPOCHS = "--trainer.epochs=4"
LOOKED_AT = (
    EPOCHS,
    "--optimizer.batch_size=64",
    "--trainer.look_every=2",
    "--trainer.probe_every=1",
    "--trainer.knn_every=None",
)


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("looked_at"), *LOOKED_AT, "--trainer.score=true").fit()


@pytest.mark.process
def test_training_computes_the_same_bits_looked_at_or_not(looked_at: Path, tmp_path: Path) -> None:
    bare = prepare(tmp_path, EPOCHS, "--optimizer.batch_size=64").fit()
    assert differences(final(bare), final(looked_at)) == []
    assert not (bare / "figures").exists()
    assert not any(row.get("rankme") for row in rows(bare))


@pytest.mark.process
def test_a_look_is_in_logs_folder_and_results(looked_at: Path) -> None:
    found = {int(row["step"]) + 1: row for row in rows(looked_at) if row["rankme"]}
    assert list(found) == [4, 8]  # every two of four epochs
    assert all(all(row[name] for name in MEASURES) for row in found.values())
    assert [row["epoch"] for row in found.values()] == ["2.0", "4.0"]
    sheets = sorted((looked_at / "figures" / "steps").iterdir())
    assert [sheet.name for sheet in sheets] == [f"step-{step:08d}.png" for step in found]
    assert len({sheet.read_bytes() for sheet in sheets}) == 2
    events = EventAccumulator(str(looked_at / "tensorboard")).Reload()
    assert [event.step for event in events.Images("look")] == [3, 7]
    assert [event.value for event in events.Scalars("rankme")] == pytest.approx(
        [float(row["rankme"]) for row in found.values()]
    )
    quality = json.loads((looked_at / "results.json").read_text())["quality"]
    assert list(quality) == ["random encoder", "pretrained encoder"]
    assert all(quality["pretrained encoder"][name] == float(found[8][name]) for name in MEASURES)
    assert quality["random encoder"]["rankme"] != quality["pretrained encoder"]["rankme"]


@pytest.mark.process
def test_the_probe_scores_the_same_features_as_knn(looked_at: Path, tmp_path: Path) -> None:
    found = {int(row["step"]) + 1: row["probe"] for row in rows(looked_at) if row["probe"]}
    assert list(found) == [2, 4, 6, 8]
    run = prepare(tmp_path)
    run.loop.load_state_dict(final(looked_at)["state_dict"])
    sample = Sample(run.data, autocast_dtype=None)
    assert float(found[8]) == pytest.approx(sample.of_encoder(run.module.objective, "cpu").probe("cpu"))


@pytest.mark.process
def test_a_run_that_goes_on_looks_as_if_it_had_never_stopped(
    looked_at: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late(Snapshot):
        is_there = False

    monkeypatch.setattr(looking, "Snapshot", Late)  # as on a GPU
    stop = acting(lambda _: os.kill(os.getpid(), signal.SIGTERM), 4)  # at a look, whose row comes late
    with pytest.raises(RunStopped, match="after step 4"):
        prepare(tmp_path, *LOOKED_AT, build=stop).fit()
    assert [row["rankme"] for row in rows(tmp_path / "run")][-1]
    assert prepare(tmp_path, *LOOKED_AT, resume=True).fit()
    assert (tmp_path / "run" / "metrics.csv").read_text() == (looked_at / "metrics.csv").read_text()
    for sheet in (looked_at / "figures" / "steps").iterdir():
        assert (tmp_path / "run" / "figures" / "steps" / sheet.name).read_bytes() == sheet.read_bytes()


def collapse(objective) -> None:
    """One and the same feature for every image: what comes after the norm is its bias."""
    norm = objective.encoder.module.norm
    norm.weight.data.zero_()
    norm.bias.data.fill_(0.5)


@pytest.mark.process
def test_a_collapse_is_told_once_and_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def keep_collapsed(objective) -> None:
        after = type(objective).after_step

        def again() -> None:
            after(objective)
            collapse(objective)

        objective.after_step = again

    options = ("--trainer.look_every=1", "--data.max_train=64")
    prepare(tmp_path / "a", *options, "--trainer.epochs=2", build=acting(keep_collapsed, 1)).fit()
    warned = re.findall(r"^warning: (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert len(warned) == 1
    assert re.match(r"after step 2 features have collapsed: their spread is [\de.-]+, below 0.01, so that", warned[0])
    assert f"Look at the newest sheet in {tmp_path / 'a' / 'run' / 'figures' / 'steps'}" in warned[0]
    prepare(tmp_path / "b", *options, "--trainer.epochs=1").fit()
    assert "warning" not in capsys.readouterr().out


@pytest.mark.process
@pytest.mark.parametrize(
    ("name", "told", "is_measured"),
    [
        ("make_rows", "no pictures after step 1: IndexError: no colour is left", True),
        ("draw_sheet", "no pictures after step 1: IndexError: no colour is left", True),
        ("quality_of", "features after step 1 are not measured: IndexError: no colour is left", False),
        ("untouched", "no look after step 1: IndexError: no colour is left", False),
    ],
)
def test_what_fails_is_a_line_and_costs_nothing(
    name: str,
    told: str,
    is_measured: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise IndexError("no colour\nis left")

    monkeypatch.setattr(looking, name, fail)
    short = ("--trainer.epochs=2", "--data.max_train=32", "--trainer.knn_every=None")
    folder = prepare(tmp_path, "--trainer.look_every=1", *short).fit()
    printed = capsys.readouterr().out
    assert re.findall(r"^warning: (.*)$", printed, re.MULTILINE)[0] == told
    assert printed.count("warning") == 2  # after the last step, too
    assert any(row.get("rankme") for row in rows(folder)) == is_measured
    assert (folder / "results.json").is_file()


@pytest.mark.process
def test_what_cannot_be_scored_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def break_it(objective) -> None:
        objective.encoder.module.norm.bias.data.fill_(torch.inf)

    def mend(objective) -> None:
        objective.encoder.module.norm.bias.data.zero_()

    options = ("--trainer.knn_every=1", "--trainer.epochs=2", "--trainer.probe_every=1", "--data.max_train=32")
    run = prepare(tmp_path, *options)
    run.module.objective.after_step = lambda: None
    of_encoder = Sample.of_encoder

    def broken(self, objective, device):
        break_it(objective)
        try:
            return of_encoder(self, objective, device)
        finally:
            mend(objective)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sample, "of_encoder", broken)
        run.fit()
    printed = capsys.readouterr().out
    assert printed.count("warning: no knn and probe after step 1: the encoder must return finite features") == 1


def test_the_default_is_a_tenth_of_the_run(tmp_path: Path) -> None:
    from ssl_blocks.pretrain.watching import Watcher

    def every(*options: str) -> int | None:
        run = prepare(tmp_path, *options)
        images = run.data.sample()
        watcher = Watcher(run.config, run.module, run.machine, images, None, looking_console())
        return None if watcher.look is None else watcher.look.every // run.module.plan.steps_per_epoch

    assert every("--trainer.look_every=auto", "--trainer.epochs=45") == 4
    assert every("--trainer.look_every=auto") == 1
    assert every("--trainer.look_every=3") == 3
    assert every() is None


def looking_console():
    from rich.console import Console

    return Console(quiet=True)


def small_sample(augment=None) -> tuple[QualitySample, torch.nn.Module]:
    from ssl_blocks import SquarePartitioner
    from tests.recipes import build

    data = some_data()
    augment = augment or RandomResizedCropFlip(16)
    sample = QualitySample(data, augment, autocast_dtype=None, batch_size=3)
    return sample, build(SquarePartitioner(sides=(2,)), depth=1, decoder_depth=1)


class OneView(RandomResizedCropFlip):
    def __call__(self, images, *, generator=None):
        return Views((images,), num_global=1)


@pytest.mark.parametrize("kind", ["crops", "views", "one view"])
def test_what_is_measured_are_features_of_the_images_and_of_two_views(kind: str) -> None:
    augment = {
        "crops": RandomResizedCropFlip(16),
        "views": MultiCrop(16, 8, num_local=1, mean=(0.5,) * 3, std=(0.25,) * 3),
        "one view": OneView(16),
    }[kind]
    sample, objective = small_sample(augment)
    found = sample.measure(objective, "cpu")
    data, encoder = some_data(), objective.encoder
    plain = to_float(data.test.images, data.mean, data.std)
    generator, pairs = seeded_generator("cpu", looking.VIEWS), []
    for part in plain.split(3):
        if kind == "crops":
            pairs.append([augment(part, generator=generator) for _ in range(2)])
        if kind == "views":
            pairs.append(augment(part, generator=generator).images[:2])
    with torch.no_grad():
        features = encoder.features(plain)
        views = tuple(encoder.features(torch.cat(side)) for side in zip(*pairs, strict=True)) or None
    expected = feature_quality(features, views).as_dict()
    assert (expected["alignment"] is None) == (kind == "one view")
    assert found.as_dict() == pytest.approx(expected, rel=1e-4)


def test_a_look_leaves_modes_buffers_and_random_state_as_they_were() -> None:
    _, objective = small_sample()
    objective.register_buffer("seen", torch.zeros(1))
    objective.train()
    objective.encoder.module.norm.eval()
    before, modes = torch.get_rng_state(), [part.training for part in objective.modules()]
    with untouched(objective, "cpu"):
        assert not any(part.training for part in objective.modules())
        objective.seen += torch.rand(1) + 1
    assert objective.seen.item() == 0
    assert [part.training for part in objective.modules()] == modes
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_seen_is_the_same_each_time() -> None:
    sample, objective = small_sample()
    torch.manual_seed(1)
    first = sample.measure(objective, "cpu")
    torch.manual_seed(2)
    assert sample.measure(objective, "cpu") == first


def test_no_more_than_so_many_images_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "NUM_LOOKED_AT", 5)
    sample, objective = small_sample()
    assert sample.measure(objective, "cpu").num_images == 5


def test_a_look_makes_no_accelerator_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    from ssl_blocks.pretrain import sheet

    for module in (looking, sheet):
        monkeypatch.setattr(module, "seeded_generator", lambda *_: None)  # the meta device has no generators
    sample, objective = small_sample()
    objective.eval()
    assert_no_wait(
        lambda objective, images: sheet.make_rows(objective, images, some_data()), objective, sample.images / 1
    )

    def measure(objective, images):
        sample.images = images
        return sample.features(objective, images.device)

    assert_no_wait(measure, objective, sample.images)


def test_a_sheet_has_a_line_of_pictures_for_every_row(tmp_path: Path) -> None:
    from ssl_blocks.grid import Grid
    from ssl_blocks.pretrain.sheet import CELL, GAP, TITLE, Row, draw_sheet

    pictures = torch.zeros(2, 3, 8, 16)
    pictures[1, 0] = 1.0
    order = torch.tensor([[0.0, 2.0], [5.0, 5.0]])
    features = torch.eye(4).reshape(2, 2, 2, 2).flatten(2)[:, :, :3]
    sheet = tmp_path / "sheet.png"
    draw_sheet(
        [Row("image", pictures, Grid(1, 2)), Row("order", order, Grid(1, 2)), Row("f", features, Grid(1, 2))], sheet
    )
    seen = np.asarray(Image.open(sheet))
    height = CELL // 2
    assert seen.shape == (3 * (TITLE + height + GAP), 2 * (CELL + GAP) + GAP, 3)
    assert seen[TITLE + 3, GAP + CELL + GAP + 3].tolist() == [255, 0, 0]
    second = 2 * TITLE + height + GAP + 3
    assert [int(seen[second, GAP + x].mean()) for x in (3, CELL - 3)] == [0, 255]
