"""RandSAC and DINO on one encoder: from options to one encoder that plain timm loads."""

from pathlib import Path

import pytest
import timm
import torch

from ssl_blocks.cli import load_config
from ssl_blocks.data import load, to_float
from ssl_blocks.pretrain import Run
from ssl_blocks.recipes.combined import RECIPE, CombinedConfig
from ssl_blocks.testing import assert_no_leak
from tests.pretrain.small import BARE, final

SMALL = [
    "--name=both",
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
    "--decoder.heads=2",
    "--dino.out_dim=16",
    "--dino.hidden_dim=16",
    "--dino.bottleneck_dim=8",
    "--dino.local_size=8",
    "--optimizer.batch_size=32",
    "--optimizer.warmup_epochs=0.5",
    "--trainer.epochs=1",
    "--trainer.device=cpu",
    *BARE,
]


def configure(folder: Path, *more: str) -> CombinedConfig:
    options = [*SMALL, f"--output_dir={folder}", *more]
    argv = list({option.partition("=")[0]: option for option in options}.values())
    return load_config(RECIPE, argv)


@pytest.mark.process
def test_a_run_trains_one_encoder_which_is_saved_once(tmp_path: Path) -> None:
    run = Run.prepare(configure(tmp_path, "--trainer.figures=true"), RECIPE.assemble)
    before = {name: p.clone() for name, p in run.module.objective.encoder.named_parameters()}
    folder = run.fit()
    objective = run.module.objective
    assert any(not torch.equal(before[name], p) for name, p in objective.encoder.named_parameters())
    stored = final(folder)["state_dict"]
    qkv = [name for name in stored if name.endswith("blocks.0.attn.qkv.weight")]
    assert sorted(qkv) == [
        "model.encoder.module.blocks.0.attn.qkv.weight",
        "model.objectives.dino.teacher.copy.encoder.encoder.module.blocks.0.attn.qkv.weight",
    ]
    assert (folder / "figures" / "randsac" / "reconstructions.png").is_file()
    assert (folder / "figures" / "dino" / "regions.png").is_file()
    header = (folder / "metrics.csv").read_text().splitlines()[0]
    assert all(name in header for name in ("randsac_loss", "dino_loss", "dino_teacher_entropy"))
    model = timm.create_model(f"local-dir:{folder / 'encoder'}", pretrained=True).eval()
    data = load("digits", image_size=16, max_train=64, max_test=40)
    images = to_float(data.test.images, data.mean, data.std)
    with torch.no_grad():
        torch.testing.assert_close(model(images), objective.encoder.eval().features(images), rtol=1e-5, atol=1e-6)


def test_what_reads_segments_does_not_leak(tmp_path: Path) -> None:
    objective = Run.prepare(configure(tmp_path, "--encoder.depth=1"), RECIPE.assemble).module.objective
    assert_no_leak(objective.parts["randsac"], torch.randn(1, 1, 16, 16))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--weights.dino=-1", "weights.dino=-1 must be at least 0"),
        ("--dino.local_size=6", "refuses images of 1x6x6 pixels"),
        ("--dino.local_size=0", "dino.local_size=0 must be greater than 0"),
    ],
)
def test_wrong_options_are_named(option: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Run.prepare(configure(tmp_path, option), RECIPE.assemble)
    assert not list(tmp_path.iterdir())


def test_weights_that_are_all_zero_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"weights: weights=.* must be finite, none below 0, and one above"):
        Run.prepare(configure(tmp_path, "--weights.dino=0", "--weights.randsac=0"), RECIPE.assemble)
