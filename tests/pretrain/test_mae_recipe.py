"""The MAE recipe runs from its command line's options to an encoder that plain timm loads."""

from pathlib import Path

import pytest
import timm
import torch

from ssl_blocks.cli import load_config
from ssl_blocks.data import load, to_float
from ssl_blocks.pretrain import Run
from ssl_blocks.recipes.mae import RECIPE, MAEConfig
from tests.pretrain.small import BARE
from tests.recipes import blank

SMALL = [
    "--name=mae",
    "--data.name=digits",
    "--data.image_size=16",
    "--data.max_train=64",
    "--data.max_test=40",
    "--encoder.patch_size=4",
    "--encoder.depth=2",
    "--encoder.width=16",
    "--encoder.heads=2",
    "--encoder.class_token=true",
    "--decoder.depth=1",
    "--decoder.width=16",
    "--decoder.heads=2",
    "--optimizer.batch_size=32",
    "--optimizer.warmup_epochs=0.5",
    "--trainer.epochs=1",
    "--trainer.device=cpu",
    *BARE,
]


def configure(folder: Path, *more: str) -> MAEConfig:
    options = [*SMALL, f"--output_dir={folder}", *more]
    return load_config(RECIPE, list({option.partition("=")[0]: option for option in options}.values()))


def test_a_run_leaves_an_encoder_that_plain_timm_loads(tmp_path: Path) -> None:
    run = Run.prepare(configure(tmp_path, "--trainer.figures=true"), RECIPE.assemble)
    folder = run.fit()
    assert (folder / "figures" / "reconstructions.png").is_file()
    model = timm.create_model(f"local-dir:{folder / 'encoder'}", pretrained=True).eval()
    data = load("digits", image_size=16, max_train=64, max_test=40)
    images = to_float(data.test.images, data.mean, data.std)
    encoder = run.module.objective.export_encoder()
    encoder.module.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(images), encoder.features(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (("--mask_ratio=0.5",), 8),
        (("--mask=block", "--mask_ratio=0.5"), 8),
        (("--mask=grid",), 4),
        (("--mask=grid", "--mask_period=4"), 1),
    ],
)
def test_masks_are_chosen_by_name(options: tuple[str, ...], kept: int, tmp_path: Path) -> None:
    run = Run.prepare(configure(tmp_path, *options), RECIPE.assemble)
    assert run.module.objective.partitioner(blank(1), run.module.objective.tokenizer.grid).step_sizes == (
        kept,
        16 - kept,
    )


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--mask_ratio=1.5", "mask_ratio=1.5 must be less than 1"),
        ("--mask_ratio=0", "mask_ratio=0 must be greater than 0"),
        ("--mask_ratio=0.99", "must leave every subset a token"),
        ("--mask=blocks", "mask='blocks' must be 'random', 'block' or 'grid'; did you mean 'block'"),
        ("--decoder.heads=3", "decoder: num_heads=3 must divide dim=16"),
    ],
)
def test_wrong_options_are_named(option: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Run.prepare(configure(tmp_path, option), RECIPE.assemble)
    assert not list(tmp_path.iterdir())
