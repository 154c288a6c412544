"""The SAIM recipe runs from its command line's options to an encoder that plain timm loads."""

from pathlib import Path

import pytest
import timm
import torch
from timm.layers import Mlp
from torch import nn

import ssl_blocks as sb
from ssl_blocks.cli import load_config
from ssl_blocks.data import ImageData, ImageShape, load, to_float
from ssl_blocks.engine.parallel import repeated_blocks
from ssl_blocks.pretrain import Run
from ssl_blocks.recipes.saim import RECIPE, SAIMConfig
from tests.pretrain.small import BARE, final

pytestmark = pytest.mark.process  # takes long

SMALL = [
    "--name=saim",
    "--data.name=digits",
    "--data.image_size=16",
    "--data.max_train=48",
    "--data.max_test=20",
    "--encoder.patch_size=4",
    "--encoder.depth=2",
    "--encoder.width=16",
    "--encoder.heads=2",
    "--optimizer.batch_size=16",
    "--optimizer.warmup_epochs=0.5",
    "--trainer.epochs=1",
    "--trainer.device=cpu",
    *BARE,
]


def configure(*more: str) -> SAIMConfig:
    options = [o for o in SMALL if o.partition("=")[0] not in {m.partition("=")[0] for m in more}]
    return load_config(RECIPE, [*options, *more])


def assemble(*more: str) -> sb.SegmentPrediction:
    return RECIPE.assemble(configure(*more), ImageData.stand_in(ImageShape(1, 16, 16)))


@pytest.mark.parametrize("options", [(), ("--share_weights=true", "--query_depth=1")])
def test_a_run_leaves_an_encoder_that_plain_timm_loads(options: tuple[str, ...], tmp_path: Path) -> None:
    shown = f"--trainer.figures={not options}"
    run = Run.prepare(configure(*options, f"--output_dir={tmp_path}", shown), RECIPE.assemble)
    folder = run.fit()
    for name in ("segments.png", "steps.png", "reconstructions.png"):
        assert (folder / "figures" / name).is_file() == (not options)
    model = timm.create_model(f"local-dir:{folder / 'encoder'}", pretrained=True).eval()
    data = load("digits", image_size=16, max_train=48, max_test=20)
    images = to_float(data.test.images, data.mean, data.std)
    encoder = run.module.objective.export_encoder()
    encoder.module.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(images), encoder.features(images), rtol=1e-5, atol=1e-6)


def test_defaults_are_saims() -> None:
    objective = assemble()
    assert isinstance(objective.head, Mlp)
    assert (objective.target.blur, objective.target.normalize) == ((9, 1.0), True)
    assert objective.reader.decoder.depth == objective.encoder.depth == 2
    assert sum(p.numel() for p in objective.reader.decoder.parameters()) > 0
    assert objective(torch.zeros(2, 1, 16, 16)).predictions.shape == (2, 16, 16)


def test_every_option_has_its_effect() -> None:
    assert isinstance(assemble("--head=linear").head, nn.Linear)
    assert assemble("--blur=5,0.7").target.blur == (5, 0.7)
    images, target = torch.rand(2, 1, 16, 16), assemble("--blur=1,1", "--normalize_target=false").target
    assert torch.equal(target.to_pixels(target(images), images), images)
    assert not assemble("--normalize_target=false").target.normalize
    assert (assemble().loss, assemble("--loss=l1").loss) == (sb.predicted_mse, sb.predicted_l1)
    assert assemble("--query_depth=1").reader.decoder.depth == 1
    assert not list(assemble("--share_weights=true").reader.decoder.parameters())
    assert assemble("--encoder.heads=4").reader.decoder.layers[0].block.attn.num_heads == 4


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--query_depth=3", "query_depth=3 must divide the encoder's depth, 2"),
        ("--query_depth=4", "query_depth=4 must divide the encoder's depth, 2"),
        ("--query_depth=0", "query_depth=0 must be greater than 0"),
        ("--blur=4,1", r"blur=\(4, 1.0\) must have a kernel of odd size"),
        ("--blur=9", "blur=9 must be 2 values, such as 1,2"),
        ("--head=conv", "head='conv' must be 'mlp' or 'linear'"),
        ("--encoder.class_token=false", "encoder.class_token='false' must be true: the first patch is predicted from"),
    ],
)
def test_wrong_options_are_named(option: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        assemble(option)


def test_shared_weights_do_not_go_with_shards() -> None:
    with pytest.raises(ValueError, match=r"share_weights=true needs trainer.strategy=ddp"):
        configure("--share_weights=true", "--trainer.strategy=fsdp", "--trainer.devices=2")


def test_blocks_are_dealt_out_once_whoever_uses_them() -> None:
    objective = assemble()
    assert repeated_blocks(objective) == [*objective.encoder.module.blocks, *objective.reader.decoder.layers]
    objective = assemble("--share_weights=true")
    assert repeated_blocks(objective) == list(objective.encoder.module.blocks)


def test_shards_of_the_query_stream_train_as_whole_copies_do(divided: Path) -> None:
    weights = [final(divided / "streams" / strategy)["state_dict"] for strategy in ("ddp", "fsdp")]
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        if "qkv.bias" not in name:  # gradients of keys' biases are rounding errors, of which AdamW makes full steps
            torch.testing.assert_close(weights[1][name], weight, rtol=1e-3, atol=1e-4, msg=name)
