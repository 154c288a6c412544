"""Every recipe trains every kind of encoder that it can, and says of the others why not."""

from pathlib import Path

import pytest
import torch
import torchvision

import ssl_blocks as sb
from ssl_blocks.cli import load_config
from ssl_blocks.encoders import export_encoder, load_encoder
from ssl_blocks.modes import without_weights
from ssl_blocks.objectives import Objective
from ssl_blocks.pretrain import PretrainModule
from ssl_blocks.recipes import RECIPES
from tests.recipes import images, some_data

DATA = some_data()  # of 16 pixels
KINDS = {
    "vit": ("--encoder.kind=vit",),
    "eva": ("--encoder.kind=vit", "--encoder.name=eva02_tiny_patch14_224"),
    "dinov3": ("--encoder.kind=vit", "--encoder.name=vit_small_patch16_dinov3"),
    "torchvision": ("--encoder.kind=torchvision",),
    "transformers vit": ("--encoder.kind=transformers",),
    "transformers dinov2": ("--encoder.kind=transformers", "--encoder.name=dinov2"),
    "transformers registers": ("--encoder.kind=transformers", "--encoder.name=dinov2_with_registers"),
    "transformers dinov3": ("--encoder.kind=transformers", "--encoder.name=dinov3_vit"),
}
SIZES = ("--name=x", "--encoder.width=16", "--encoder.depth=2", "--encoder.heads=2", "--optimizer.batch_size=8")
OWN = {
    "randsac": ("--decoder.depth=1",),
    "mae": ("--decoder.width=16", "--decoder.depth=1", "--decoder.heads=2"),
    "saim": (),
    "apl": ("--grid=4", "--crop=0"),
    "esvit": ("--crops.local_size=8", "--head.out_dim=8", "--head.hidden=8", "--head.bottleneck=8"),
    "combined": ("--decoder.depth=1", "--dino.local_size=8", "--dino.out_dim=8"),
}
FAMILIES = {"vit": "TimmViT", "eva": "TimmEva", "dinov3": "TimmEva", "torchvision": "TorchvisionViT"}
ROTARY = "encoder: name='.*' has rotary positions, which would give the places away"
REFUSED = {  # all other pairs are trained
    ("apl", "eva"): ROTARY,
    ("apl", "dinov3"): ROTARY,
    **{
        ("apl", kind): rf"^encoder.kind={kind.partition(' ')[0]} cannot be trained by this recipe: its positions would"
        for kind in KINDS
        if kind.startswith("t")
    },
}


def tried(recipe: str, *options: str) -> Objective:
    """The objective, after two images went through all of it."""
    patch = () if recipe == "apl" else ("--encoder.patch_size=4",)
    argv = {option.partition("=")[0]: option for option in (*SIZES, *patch, *OWN[recipe], *options)}
    config = load_config(RECIPES[recipe], list(argv.values()))
    objective = RECIPES[recipe].assemble(config, DATA)
    PretrainModule(objective, DATA, config).check()  # a gradient reaches every parameter
    return objective


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_trains_it_or_says_why_not(recipe: str, kind: str) -> None:
    if (recipe, kind) in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[recipe, kind]):
            tried(recipe, *KINDS[kind])
        return
    encoder = tried(recipe, *KINDS[kind]).export_encoder()
    inner = getattr(encoder, "encoder", encoder)
    assert type(inner).__name__ == FAMILIES.get(kind, "TransformersViT")
    assert (inner.dim, inner.depth, inner.patch, sb.encoders.num_heads(inner)) == (16, 2, (4, 4), 2)


@pytest.mark.parametrize("recipe", RECIPES)
def test_maps_and_raw_patches_are_refused_with_the_reason(recipe: str) -> None:
    for kind, reason in {"map": "its stages mix pixels", "original": "it has no positions"}.items():
        if (recipe, kind) not in (("esvit", "map"), ("apl", "original")):
            with pytest.raises(ValueError, match=f"^encoder.kind={kind} cannot be trained by this recipe: {reason}"):
                load_config(RECIPES[recipe], ["--name=x", f"--encoder.kind={kind}"])


def saved(encoder: sb.encoders.FeatureEncoder, folder: Path) -> str:
    export_encoder(encoder, folder, tokenizer=None, mean=(0.5,) * 3, std=(0.5,) * 3)
    return f"local-dir:{folder}"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("t")])
def test_an_export_is_gone_on_from_at_its_size_and_at_another(kind: str, tmp_path: Path) -> None:
    old = tried("mae", *KINDS[kind]).encoder
    with torch.no_grad():
        for parameter in old.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    name = saved(old, tmp_path / "encoder")
    options = (
        "--encoder.name=" + name,
        *(f"--encoder.{size}=None" for size in ("width", "depth", "heads", "patch_size")),
    )
    new = tried("mae", KINDS[kind][0], *options).encoder
    assert new.training
    before = old.module.state_dict()
    assert all(torch.equal(value, before[key]) for key, value in new.module.state_dict().items())
    build = sb.encoders.torchvision_vit if kind == "torchvision" else sb.encoders.transformers_vit
    larger = build(name, image_size=32, pretrained=True)
    assert str(larger.grid) == "8x8"
    again = load_encoder(tmp_path / "encoder", image_size=32)
    torch.testing.assert_close(larger.eval().features(images(2, 32)), again.features(images(2, 32)))
    for wrong, message in {
        "--encoder.width=32": "width=32 contradicts the pretrained 'local-dir:.*', which has 16",
        "--encoder.pretrained=false": "names weights: start from them",
    }.items():
        with pytest.raises(ValueError, match=f"^encoder: .*{message}"):
            tried("mae", KINDS[kind][0], *{o.partition("=")[0]: o for o in (*options, wrong)}.values())


def test_a_folder_of_another_family_is_told(tmp_path: Path) -> None:
    name = saved(tried("mae").encoder, tmp_path / "encoder")
    with pytest.raises(
        TypeError, match=r"encoder: name='.*' must hold an encoder for TorchvisionViT, but holds a TimmViT"
    ):
        tried("mae", "--encoder.kind=torchvision", f"--encoder.name={name}")


def test_torchvisions_own_weights_are_resampled_for_other_images(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    size = {"image_size": 16, "patch_size": 4, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 64}
    asked = []

    def get_model(name: str, weights: str | None = None) -> torchvision.models.VisionTransformer:
        asked.append(weights)
        return torchvision.models.VisionTransformer(**size)

    monkeypatch.setattr("torchvision.models.get_model", get_model)
    same = sb.encoders.torchvision_vit(image_size=16, pretrained=True)
    larger = sb.encoders.torchvision_vit(image_size=32, pretrained=True)
    assert asked == [None, "DEFAULT", None, "DEFAULT"]
    assert (str(same.grid), str(larger.grid)) == ("4x4", "8x8")
    assert not list(same.module.heads.parameters())
    with pytest.raises(ValueError, match="channels=1 contradicts the pretrained 'vit_b_16', which has 3"):
        sb.encoders.torchvision_vit(image_size=16, channels=1, pretrained=True)
    with without_weights():
        assert sb.encoders.torchvision_vit(image_size=16, pretrained=True).module.class_token.is_meta
    assert asked[-1] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--encoder.kind=torchvision", "--encoder.name=vit_b_61"),
            "no vision transformer of torchvision: .*'vit_b_16'",
        ),
        (("--encoder.kind=torchvision", "--encoder.heads=3"), "encoder: num_heads=3 must divide embed_dim=16"),
        (("--encoder.kind=transformers", "--encoder.patch_size=5"), "patch_size=5 must divide image_size="),
        (("--encoder.kind=transformers", "--encoder.name=beit"), "name='beit' is none of vit, dinov2"),
        (("--encoder.kind=transformers", "--encoder.pretrained=true"), "name='vit' names no weights"),
        (
            ("--encoder.kind=transformers", "--encoder.name=local-dir:nowhere"),
            "encoder: folder='nowhere' must be an exp",
        ),
        (("--encoder.name=eva02_tiny_patch14_224", "--encoder.positions=learned"), "has rotary ones: leave it out"),
        (
            ("--encoder.kind=torchvision", "--trainer.strategy=fsdp"),
            "encoder.kind=torchvision needs trainer.strategy=ddp",
        ),
    ],
)
def test_wrong_wishes_are_one_line(options: tuple[str, ...], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        tried("mae", *options)


def test_an_option_alone_takes_the_documented_kind_of_its_part() -> None:
    randsac = RECIPES["randsac"]
    assert load_config(randsac, ["--name=x", "--segments.sides=2"]).segments.sides == (2,)
    assert load_config(randsac, ["--name=x", "--encoder.width=96"]).encoder.kind == "vit"
    assert load_config(RECIPES["esvit"], ["--name=x", "--encoder.window_size=4"]).encoder.kind == "map"
    assert load_config(RECIPES["apl"], ["--name=x", "--encoder.mlp_ratio=2"]).encoder.kind == "original"
    with pytest.raises(ValueError, match=r"segments.counts goes with segments.kind=blob, not with square"):
        load_config(randsac, ["--name=x", "--segments.counts=2"])


def test_naming_the_kind_that_a_preset_has_leaves_the_rest_of_it() -> None:
    preset = "--preset=randsac_cifar_small"
    assert load_config(RECIPES["randsac"], [preset, "--encoder.kind=vit"]).encoder.width == 96
    assert load_config(RECIPES["randsac"], [preset, "--encoder.kind=torchvision"]).encoder.width is None


def test_the_decoder_has_the_encoders_heads_unless_told() -> None:
    layers = tried("randsac").reader.decoder.layers
    assert layers[0].cross_attn.num_heads == 2
    assert tried("randsac", "--decoder.heads=4").reader.decoder.layers[0].cross_attn.num_heads == 4


def test_a_model_that_does_not_tell_its_heads_is_named() -> None:
    with pytest.raises(ValueError, match="ResNet does not tell how many attention heads it has: give heads"):
        sb.encoders.num_heads(sb.encoders.timm_regions("resnet10t", image_size=32))
