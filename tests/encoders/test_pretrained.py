"""Pretrained encoders go on whole: all weights as they were, the parts of the model as they were, or a refusal."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import ssl_blocks as sb
from ssl_blocks.encoders import export_encoder, timm_eva, timm_vit
from ssl_blocks.modes import without_weights
from ssl_blocks.parts.position import resample_positions

SIZE = {"depth": 2, "embed_dim": 16, "num_heads": 2}
HALF = (0.5, 0.5, 0.5)
ENCODERS = {
    "sincos": (timm_vit, {}),
    "class token, sincos": (timm_vit, {"class_token": True}),
    "class token, learned": (timm_vit, {"class_token": True, "positions": "learned"}),
    "registers, layer scale": (timm_vit, {"reg_tokens": 2, "init_values": 0.1, "positions": "learned"}),
    "no positions": (timm_vit, {"positions": "none"}),
    "class pooling": (timm_vit, {"class_token": True, "global_pool": "token"}),
    "rotary": (timm_eva, {}),
    "EVA-02": (timm_eva, {"name": "eva02_tiny_patch14_224"}),
    "DINOv3": (timm_eva, {"name": "vit_small_patch16_dinov3"}),
}


def trained(make=timm_vit, **options):
    """An encoder with weights that no initialisation draws; a fixed table stays as it is."""
    torch.manual_seed(0)
    encoder = make(**{"image_size": 16, "patch_size": 4, **SIZE, **options})
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return encoder.eval()


def export(encoder, folder: Path) -> str:
    """The name by which timm knows it."""
    tokenizer = sb.PatchTokenizer(image_size=16, patch_size=4)
    return f"local-dir:{export_encoder(encoder, folder / 'encoder', tokenizer=tokenizer, mean=HALF, std=HALF)}"


def images(size: int = 16, channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ENCODERS)
def test_every_weight_and_all_features_are_those_before(kind: str, tmp_path: Path) -> None:
    make, options = ENCODERS[kind]
    before = trained(make, **options)
    after = make(export(before, tmp_path), image_size=16, pretrained=True)
    assert isinstance(after, type(before))
    assert after.patch == (4, 4)
    assert after.num_prefix == before.num_prefix
    old, new = dict(before.named_parameters()), dict(after.named_parameters())
    assert old.keys() == new.keys()
    for name, parameter in new.items():
        assert torch.equal(parameter, old[name]), name
        assert parameter.requires_grad == old[name].requires_grad, name
    after.eval()
    assert torch.equal(after.features(images()), before.features(images()))


@pytest.mark.parametrize("kind", [kind for kind in ENCODERS if kind != "class pooling"])
def test_what_went_on_is_exported_for_plain_timm_again(kind: str, tmp_path: Path) -> None:
    make, options = ENCODERS[kind]
    encoder = make(export(trained(make, **options), tmp_path / "a"), image_size=16, pretrained=True).eval()
    model = timm.create_model(export(encoder, tmp_path / "b"), pretrained=True).eval()
    torch.testing.assert_close(model(images()), encoder.features(images()), rtol=0, atol=1e-6)
    assert "pretrained" not in encoder.model_args


def test_another_image_size_resamples_the_positions_alone(tmp_path: Path) -> None:
    before = trained(class_token=True, positions="learned")
    after = timm_vit(export(before, tmp_path), image_size=(24, 16), pretrained=True)
    assert str(after.grid) == "6x4"
    table = resample_positions(before.module.pos_embed, old=before.grid, new=after.grid, num_prefix=1, antialias=True)
    torch.testing.assert_close(after.module.pos_embed, table)  # timm does it
    state = before.module.state_dict()
    for name, value in after.module.state_dict().items():
        assert name == "pos_embed" or torch.equal(value, state[name]), name


def test_a_resampled_fixed_table_is_trained_from_there_on(tmp_path: Path) -> None:
    name = export(trained(class_token=True), tmp_path)
    assert not timm_vit(name, image_size=16, pretrained=True).module.pos_embed.requires_grad
    assert timm_vit(name, image_size=16, pretrained=True, positions="learned").module.pos_embed.requires_grad
    assert timm_vit(name, image_size=32, pretrained=True).module.pos_embed.requires_grad


def test_another_patch_and_grey_images_change_the_patch_embedding_alone(tmp_path: Path) -> None:
    before = trained(class_token=True)
    after = timm_vit(export(before, tmp_path), image_size=32, patch_size=8, channels=1, pretrained=True)
    assert (after.patch, after.channels, str(after.grid)) == ((8, 8), 1, "4x4")
    state = before.module.state_dict()
    changed = {name for name, v in after.module.state_dict().items() if not torch.equal(v, state[name])}
    assert changed == {"patch_embed.proj.weight"}
    grey = timm_vit(export(before, tmp_path), image_size=16, channels=1, pretrained=True).eval()
    one = images(channels=1)
    torch.testing.assert_close(grey.features(one), before.features(one.expand(-1, 3, -1, -1)), rtol=0, atol=1e-5)


def test_the_folder_gives_the_architecture_without_its_weights_too(tmp_path: Path) -> None:
    before = trained(class_token=True)
    fresh = timm_vit(export(before, tmp_path), image_size=16)
    assert (fresh.dim, fresh.depth, fresh.patch, fresh.num_prefix) == (16, 2, (4, 4), 0)
    assert not torch.equal(fresh.module.blocks[0].attn.qkv.weight, before.module.blocks[0].attn.qkv.weight)


def test_the_models_own_patch_is_the_default() -> None:
    assert timm_vit("vit_tiny_patch16_224.augreg_in21k", image_size=32, depth=1).patch == (16, 16)
    assert timm_eva("eva02_tiny_patch14_224", image_size=28, depth=1).patch == (14, 14)
    with pytest.raises(ValueError, match=r"patch_size=\(16, 16\) must divide image_size=24"):
        timm_vit(image_size=24)


def test_a_tag_of_timm_gives_all_but_the_classifier(tmp_path: Path) -> None:
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    torch.manual_seed(0)
    model = timm.create_model(name)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth"), "custom_load": False}
    encoder = timm_vit(name, image_size=224, pretrained=True, pretrained_cfg_overlay=overlay)
    state = model.state_dict()
    assert state.keys() - encoder.module.state_dict().keys() == {"head.weight", "head.bias"}
    assert all(torch.equal(value, state[name]) for name, value in encoder.module.state_dict().items())
    assert encoder.num_prefix == 1
    assert "pretrained_cfg_overlay" not in encoder.model_args
    assert isinstance(encoder.module.head, nn.Identity)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_token": False}, "class_token=False contradicts the pretrained .* leave class_token out"),
        ({"depth": 3}, "depth=3 contradicts the pretrained .*, which has depth=2"),
        ({"embed_dim": 32}, "embed_dim=32 contradicts the pretrained .*, which has embed_dim=16"),
        ({"num_heads": 4}, "num_heads=4 contradicts the pretrained .*, which has num_heads=2"),
        ({"positions": "none"}, "positions='none' contradicts the pretrained .*, which has a table"),
        ({"positions": "sincos"}, "positions='sincos' would overwrite those of pretrained=True: leave positions out"),
        ({"mlp_ratio": 2}, "weights cannot be loaded: RuntimeError: .*size mismatch for blocks.0.mlp.fc1.weight"),
        ({"reg_tokens": 1}, "weights cannot be loaded: "),
        ({"init_values": 0.1}, "weights cannot be loaded: .*Missing key.*ls1.gamma"),
        ({"patch_size": 3}, "patch_size=3 must divide image_size=16"),
        ({"fc_norm": True}, "weights cannot be loaded: .*Missing key.*fc_norm.weight"),
    ],
)
def test_what_would_drop_weights_or_change_their_meaning_is_refused(options, message, tmp_path: Path) -> None:
    name = export(trained(class_token=True, positions="learned"), tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        timm_vit(name, image_size=16, pretrained=True, **options)
    assert "\n" not in str(caught.value)


def test_positions_are_not_invented(tmp_path: Path) -> None:
    name = export(trained(positions="none"), tmp_path)
    for positions in ("sincos", "learned"):
        with pytest.raises(
            ValueError, match=f"positions='{positions}' contradicts the pretrained .*, which has no table"
        ):
            timm_vit(name, image_size=16, pretrained=True, positions=positions)


@pytest.mark.parametrize("change", ["missing", "left over"])
def test_a_file_that_lacks_a_weight_or_has_one_more_is_refused(change: str, tmp_path: Path) -> None:
    name = export(trained(class_token=True), tmp_path)
    file = tmp_path / "encoder" / "model.safetensors"
    state = load_file(file)
    save_file(state | {"more": torch.zeros(1)} if change == "left over" else without(state, "norm.bias"), file)
    with pytest.raises(ValueError, match=r'weights cannot be loaded: .*(Missing|Unexpected) key.*"(norm.bias|more)"'):
        timm_vit(name, image_size=16, pretrained=True)


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


def test_a_norm_behind_the_pooling_is_refused(tmp_path: Path) -> None:
    size = {"img_size": 16, "patch_size": 4, "num_classes": 0, **SIZE}
    model = timm.create_model("vit_tiny_patch16_224", global_pool="avg", **size)
    timm.models.save_for_hf(model, str(tmp_path), model_args={**size, "global_pool": "avg"}, safe_serialization=True)
    with pytest.raises(ValueError, match=r"has its final norm behind the pooling \(fc_norm\)"):
        timm_vit(f"local-dir:{tmp_path}", image_size=16, pretrained=True)
    with pytest.raises(ValueError, match="the pretrained 'eva02_tiny_patch14_224' has its final norm behind"):
        timm_eva("eva02_tiny_patch14_224", image_size=28, pretrained=True)


def test_a_configuration_under_which_timm_would_not_mind_missing_weights_is_refused(tmp_path: Path) -> None:
    name = export(trained(), tmp_path)
    config = tmp_path / "encoder" / "config.json"
    values = json.loads(config.read_text())
    values["pretrained_cfg"]["num_classes"] = values["num_classes"] = 10
    config.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="configuration tells of 10 classes, its arguments of 0"):
        timm_vit(name, image_size=16, pretrained=True)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("local-dir:nowhere", FileNotFoundError, "name='local-dir:nowhere' must name the folder of a model, but there"),
        ("vit_tiny_patch16_224.nope", ValueError, r"cannot be read: RuntimeError: Invalid pretrained tag \(nope\)"),
        ("nowhere/vit", ValueError, "name='nowhere/vit' is no timm model"),
        ("hf-hub:", ValueError, "name='hf-hub:' is no timm model"),
        ("resnet18", TypeError, "ResNet is not a timm VisionTransformer"),
        ("vit_tiny_r_s16_p8_224", TypeError, "HybridEmbed stem"),
    ],
)
def test_names_that_give_no_pretrained_encoder_are_told(name: str, error, message: str) -> None:
    with pytest.raises(error, match=message):
        timm_vit(name, image_size=32, pretrained=True)


@pytest.mark.parametrize("make", [timm_vit, timm_eva])
def test_a_download_that_fails_is_one_line(make, monkeypatch: pytest.MonkeyPatch) -> None:
    class UnreachableError(Exception):
        pass

    def fail(*_, **__):
        raise UnreachableError("the network\nis not there")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", fail)
    monkeypatch.setattr("timm.models._builder.download_cached_file", fail)
    name = "vit_tiny_patch16_224.augreg_in21k" if make is timm_vit else "vit_small_patch16_rope_224.naver_in1k"
    with pytest.raises(ValueError, match=f"name='{name}': its .* cannot be loaded: UnreachableError: the network is"):
        make(name, image_size=32, pretrained=True)


def test_nothing_is_loaded_on_the_meta_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = export(trained(class_token=True), tmp_path)
    (tmp_path / "encoder" / "model.safetensors").unlink()
    with without_weights():
        encoder = timm_vit(name, image_size=16, pretrained=True)
    assert (encoder.num_prefix, encoder.dim, encoder.module.cls_token.is_meta) == (1, 16, True)


def randsac(encoder, tokenizer):
    return sb.SegmentPrediction(
        encoder=encoder,
        tokenizer=tokenizer,
        partitioner=sb.SquarePartitioner(sides=(2,)),
        target=sb.PixelTarget(tokenizer),
        reader=sb.DecoderReader(
            sb.LearnedSkipRouter(encoder_depth=2, decoder_depth=1),
            sb.SegmentDecoder(grid=encoder.grid, dim=16, depth=1, num_heads=2),
        ),
    )


def mae(encoder, tokenizer):
    return sb.mae(
        encoder=encoder,
        tokenizer=tokenizer,
        target=sb.PixelTarget(tokenizer),
        decoder=sb.MaskTokenDecoder(grid=encoder.grid, dim=16, depth=1, num_heads=2, memory_dim=16),
    )


@pytest.mark.parametrize("objective", [randsac, mae])
@pytest.mark.parametrize("kind", ["class token, sincos", "class token, learned", "rotary"])
def test_objectives_train_a_step_on_it(kind: str, objective, tmp_path: Path) -> None:
    make, options = ENCODERS[kind]
    before = trained(make, **options)
    encoder = make(export(before, tmp_path), image_size=16, pretrained=True)
    module = objective(encoder, sb.PatchTokenizer(image_size=16, patch_size=encoder.patch))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    module(images()).loss.backward()
    used = {name for name, p in encoder.named_parameters() if p.requires_grad and p.grad is not None}
    assert used == {name for name, p in encoder.named_parameters() if p.requires_grad}
    optimizer.step()
    fixed = {name for name, p in before.named_parameters() if not p.requires_grad}
    for (name, old), new in zip(before.named_parameters(), encoder.parameters(), strict=True):
        assert torch.equal(old, new) == (name in fixed), name
