"""The EsViT recipe runs from its command line's options to an encoder that plain timm loads."""

import csv
import os
import signal
from pathlib import Path

import pytest
import timm
import torch

import ssl_blocks as sb
from ssl_blocks.cli import load_config
from ssl_blocks.data import ImageData, ImageShape, load, to_float
from ssl_blocks.engine.errors import RunStopped
from ssl_blocks.pretrain import Run
from ssl_blocks.pretrain.estimate import count_flops, count_parameters
from ssl_blocks.recipes.esvit import RECIPE, EsViTConfig
from tests.pretrain.small import BARE, differences, final

pytestmark = pytest.mark.process  # takes long

COMMON = [
    "--name=esvit",
    "--data.name=digits",
    "--data.image_size=16",
    "--data.max_train=64",
    "--data.max_test=20",
    "--crops.num_local=2",
    "--crops.local_size=8",
    "--crops.blur_sigma=[0.1, 0.5]",
    "--head.out_dim=16",
    "--head.hidden=16",
    "--head.bottleneck=8",
    "--optimizer.batch_size=16",
    "--optimizer.warmup_epochs=0.5",
    "--optimizer.weight_decay_end=0.4",
    "--trainer.epochs=2",
    "--trainer.device=cpu",
    *BARE,
]
MAP = [
    "--encoder.kind=map",
    "--encoder.patch_size=2",
    "--encoder.window_size=2",
    "--encoder.width=8",
    "--encoder.stage_depths=[1, 1]",
    "--encoder.stage_heads=[1, 2]",
]
ONE_STAGE = [*MAP[:-2], "--encoder.stage_depths=[1]", "--encoder.stage_heads=[1]"]
VIT = ["--encoder.kind=vit", "--encoder.patch_size=4", "--encoder.width=16", "--encoder.depth=2", "--encoder.heads=2"]


def configure(folder: Path, *more: str) -> EsViTConfig:
    options = [*COMMON, f"--output_dir={folder}", *more]
    argv = list({option.partition("=")[0]: option for option in options}.values())
    return load_config(RECIPE, argv)


@pytest.mark.parametrize("encoder", [MAP, VIT, [*VIT, "--encoder.class_token=false"]], ids=["map", "vit", "no token"])
@pytest.mark.process
def test_a_run_leaves_the_teachers_encoder_and_plain_timm_loads_it(encoder: list[str], tmp_path: Path) -> None:
    options = (f"--trainer.figures={str(encoder is MAP).lower()}", "--trainer.epochs=1", "--data.max_train=32")
    run = Run.prepare(configure(tmp_path, *encoder, *options), RECIPE.assemble)
    folder = run.fit()
    assert (folder / "figures" / "regions.png").is_file() == (encoder is MAP)
    model = timm.create_model(f"local-dir:{folder / 'encoder'}", pretrained=True).eval()
    data = load("digits", image_size=16, max_train=32, max_test=20)
    images = to_float(data.test.images, data.mean, data.std)
    teacher = run.module.objective.teacher.copy.encoder
    with torch.no_grad():
        torch.testing.assert_close(model(images), teacher.features(images), rtol=1e-5, atol=1e-6)
        assert not torch.allclose(model(images), run.module.objective.encoder.eval().features(images))
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in ("teacher_entropy", "teacher_kl", "feature_spread"):
        assert all(float(row[name]) > 0 for row in rows if row["loss"])


@pytest.mark.parametrize("norm", ["true", "false"])
def test_a_frozen_layer_is_not_updated_at_all(tmp_path: Path, norm: str) -> None:
    """As in DINO's code: no decay and no moments, of the rows' lengths neither."""
    options = (*VIT, "--head.freeze_epochs=1", f"--head.norm_last_layer={norm}", "--optimizer.weight_decay=0.4")
    options = (*options, "--data.max_train=32")
    stopped = Run.prepare(configure(tmp_path, *options), RECIPE.assemble)
    objective = stopped.module.objective
    before = {name: p.detach().clone() for name, p in objective.named_parameters()}
    stops, after = iter([False, True]), objective.after_step
    objective.after_step = lambda: (after(), next(stops) and os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(RunStopped, match="SIGTERM after step 2"):
        stopped.fit()
    last = [name for name in before if name.startswith("student.") and "last_layer" in name]
    assert len(last) == 4
    half = final(tmp_path / "esvit")
    key = next(name for name in half["state_dict"] if name.endswith(last[0])).removesuffix(last[0])
    found = {name.removeprefix(key): value for name, value in half["state_dict"].items()}
    assert all(torch.equal(found[name], before[name]) for name in last)
    assert not torch.equal(found["student.view_head.layers.0.weight"], before["student.view_head.layers.0.weight"])
    trained = sum(p.requires_grad for p in objective.parameters())
    moving = sum(p.requires_grad for name, p in objective.named_parameters() if name in last)
    assert len(half["optimizer_states"][0]["state"]) == trained - moving
    Run.prepare(configure(tmp_path, *options), RECIPE.assemble, resume=True).fit()
    end = final(tmp_path / "esvit")
    lengths = [name for name in last if name.endswith("original0")]
    for name in last:
        moves = norm == "false" or name not in lengths
        assert torch.equal(end["state_dict"][key + name], before[name]) is not moves, name


def test_dino_has_no_heads_for_regions(tmp_path: Path) -> None:
    run = Run.prepare(configure(tmp_path, *ONE_STAGE, "--region_weight=0", "--trainer.epochs=1"), RECIPE.assemble)
    assert run.module.objective.student.region_head is None
    run.fit()


def stopping(at_step: int):
    def build(config, data):
        objective = RECIPE.assemble(config, data)
        after, steps = objective.after_step, 0

        def after_step() -> None:
            nonlocal steps
            after()
            steps += 1
            if steps == at_step:
                os.kill(os.getpid(), signal.SIGTERM)

        objective.after_step = after_step
        return objective

    return build


@pytest.mark.process
def test_an_interrupted_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    options = [
        *ONE_STAGE,
        "--data.max_train=32",
        "--encoder.drop_path=0.3",
        "--head.freeze_epochs=1",
        "--optimizer.accumulate=2",
        "--teacher.warmup_epochs=2",
        "--teacher.temperature=0.07",
    ]
    whole = Run.prepare(configure(tmp_path / "whole", *options), RECIPE.assemble).fit()
    with pytest.raises(RunStopped, match="step 1"):
        Run.prepare(configure(tmp_path / "parts", *options), stopping(1)).fit()
    run = Run.prepare(configure(tmp_path / "parts", *options), RECIPE.assemble, resume=True)
    ended = run.fit()
    assert differences(final(whole), final(ended)) == []
    assert (whole / "metrics.csv").read_text() == (ended / "metrics.csv").read_text()
    stored = final(ended)["state_dict"]
    for name in ("center.value", "region_center.value", "teacher.copy.encoder.module.norm.weight"):
        assert stored[f"model.{name}"].any()
    assert 0 < run.module.objective.teacher.rate < 1e-3  # 1 comes after the last step


def test_views_are_counted(tmp_path: Path) -> None:
    shape, work = ImageShape(1, 16, 16), []
    for number in (0, 2):
        config = configure(tmp_path, *ONE_STAGE, f"--crops.num_local={number}")
        objective = RECIPE.assemble(config, ImageData.stand_in(shape))
        found = count_flops(objective, shape, config.augmentation(shape, (0.5,), (1.0,)))
        work.append(found.forward + found.backward)
    assert 1.1 * work[0] < work[1] < 2 * work[0]
    assert list(count_parameters(objective))[-1] == "teacher"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([*MAP, "--region_weight=2"], "region_weight=2 must be at most 1"),
        ([*VIT, "--crops.local_size=6"], "VisionTransformer refuses images of 1x6x6 pixels"),
        ([*VIT, "--crops.local_size=20"], "VisionTransformer refuses images of 1x20x20 pixels"),
        ([*MAP, "--crops.blur_sigma=[2, 1]"], "crops: sigma=.* must be .smallest, largest."),
        ([*MAP, "--crops.local_scale=[0.5, 0.1]"], "crops: local_scale=.* must be .smallest, largest."),
        ([*MAP, "--encoder.name=swin_tiny"], "encoder: name='swin_tiny' is no timm model"),
    ],
)
def test_wrong_options_are_named_before_anything_is_written(options: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Run.prepare(configure(tmp_path, *options), RECIPE.assemble)
    assert not list(tmp_path.iterdir())


def test_crops_are_taken_of_files_decoded_whole(tmp_path: Path) -> None:
    from PIL import Image

    for label in ("a", "b"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (24, 20), (10 * i, 0, 255)).save(tmp_path / "data" / label / f"{i}.png")
    options = [*MAP, f"--data.name=imagefolder:{tmp_path / 'data'}", "--data.storage=stream", "--data.workers=0"]
    config = configure(tmp_path / "runs", *options, "--optimizer.batch_size=8", "--trainer.epochs=1")
    seen: list[sb.Views] = []

    def build(config, data):
        objective = RECIPE.assemble(config, data)
        objective.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        return objective

    run = Run.prepare(config, build)
    assert run.data.is_streamed
    run.fit()
    assert {tuple(view.shape[1:] for view in views.images) for views in seen} == {
        ((3, 16, 16), (3, 16, 16), (3, 8, 8), (3, 8, 8))
    }
