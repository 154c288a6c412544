"""Every kind of encoder is saved and loaded again, with features equal to the bit."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from timm.models import save_for_hf
from torch import nn

from ssl_blocks import encoders
from ssl_blocks.encoders import TokenRegions, TorchEncoder, export_encoder, load_encoder, wrap
from tests.encoders.stored import ALL, TORCH, TRANSFORMERS, build, inputs_for, torch_encoder, torchvision_vit

HALF = (0.5, 0.25, 0.125)


def save(encoder, folder: Path) -> Path:
    return export_encoder(encoder, folder / "encoder", tokenizer=None, mean=HALF, std=HALF)


@pytest.mark.parametrize("name", ALL)
def test_features_are_equal_to_the_bit(name: str, tmp_path: Path) -> None:
    encoder = build(name)
    images = inputs_for(encoder)
    folder = save(encoder, tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again = load_encoder(folder)
    assert type(again) is type(encoder)
    assert (again.dim, again.channels) == (encoder.dim, encoder.channels)
    assert not any(part.training for part in again.module.modules())
    with torch.no_grad():
        expected = encoder.features(images)
        assert torch.equal(again.features(images), expected)
        if isinstance(again, encoders.RegionEncoder):
            assert torch.equal(again.regions(images).map, encoder.regions(images).map)
        # once more, from what was loaded, and at its own size
        twice = load_encoder(save(again, tmp_path / "second"), image_size=tuple(images.shape[2:]))
        assert torch.equal(twice.features(images), expected)
    if isinstance(encoder, TokenRegions):
        assert type(again.encoder) is type(encoder.encoder)
        assert again.class_token == encoder.class_token
    again.features(images).square().mean().backward()  # and it can be trained
    assert all(not parameter.is_meta for parameter in again.module.parameters())
    assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in again.module.parameters())


@pytest.mark.parametrize("name", TORCH)
def test_parts_of_a_users_own_model_get_names_of_ours(name: str, tmp_path: Path) -> None:
    encoder = build(name)
    folder = save(encoder, tmp_path)
    state = load_file(folder / "model.safetensors")
    assert {key.partition(".")[0] for key in state} <= {"stem", "encoder", "positions", "prefix"}
    again = load_encoder(folder)
    assert isinstance(again, TorchEncoder)
    ours, theirs = again.gathered(), encoder.gathered()
    assert {key for key, _ in ours.named_parameters()} == {key for key, _ in theirs.named_parameters()}
    assert {key: value.shape for key, value in ours.named_buffers()} == {
        key: value.shape for key, value in theirs.named_buffers()
    }
    assert again.no_weight_decay() == {f"module.{key}" for key in state if key in ("positions", "prefix")}
    assert ours.encoder.layers[1].dropout1.p == theirs.encoder.layers[1].dropout1.p


def test_shared_layers_are_saved_for_each(tmp_path: Path) -> None:
    encoder = build("torch, no positions")
    layers = encoder.gathered().encoder.layers
    layers[1] = layers[0]
    images = inputs_for(encoder)
    with torch.no_grad():
        assert torch.equal(load_encoder(save(encoder, tmp_path)).features(images), encoder.features(images))


@pytest.mark.parametrize("name", ["ViT, rectangle, no pooling", "ViT, mask token", "transformers ViT"])
def test_plain_transformers_loads_its_own(name: str, tmp_path: Path) -> None:
    import transformers

    encoder = build(name)
    images = inputs_for(encoder)
    folder = save(encoder, tmp_path)
    plain = transformers.AutoModel.from_pretrained(folder).eval()
    assert type(plain) is type(encoder.module)
    assert plain.config.ssl_blocks["encoder"] == "TransformersViT"
    with torch.no_grad():
        assert torch.equal(plain(images).last_hidden_state, encoder.native(images))
        assert torch.equal(wrap(plain).features(images), encoder.features(images))


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_folder_of_transformers_without_notes_is_loaded_with_the_one_attention(name: str, tmp_path: Path) -> None:
    encoder = build(name)
    images = inputs_for(encoder)
    encoder.module.save_pretrained(tmp_path)
    again = load_encoder(tmp_path)
    assert again.module.config._attn_implementation == "sdpa"
    with torch.no_grad():
        assert torch.equal(again.features(images), encoder.features(images))


def test_a_folder_of_timm_without_notes_is_loaded(tmp_path: Path) -> None:
    encoder = build("timm, learned, class token")
    save_for_hf(encoder.module, tmp_path, model_args=encoder.model_args, safe_serialization=True)
    assert "ssl_blocks" not in json.loads((tmp_path / "config.json").read_text())
    images = inputs_for(encoder)
    again = load_encoder(tmp_path)
    assert isinstance(again, encoders.TimmViT)
    with torch.no_grad():
        assert torch.equal(again.features(images), encoder.features(images))


def test_a_folder_names_no_code_and_no_kernels(tmp_path: Path) -> None:
    encoder = build("transformers ViT")
    folder = save(encoder, tmp_path)
    path = folder / "config.json"
    more = {"auto_map": {"AutoModel": "code.Evil"}, "_attn_implementation": "someone/kernels"}
    more["attn_implementation"] = "someone/kernels"
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    (folder / "code.py").write_text("raise SystemExit('code of a folder was run')")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/else"}))
    images = inputs_for(encoder)
    with torch.no_grad():
        assert torch.equal(load_encoder(folder).features(images), encoder.features(images))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "bert"}, "model_type='bert' must be one of vit, dinov2, "),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"num_hidden_layers": 3}, "weights are not those of the configuration: .*missing_keys"),
        ({"num_hidden_layers": 1}, "weights are not those of the configuration: .*unexpected_keys"),
        ({"hidden_size": 32}, "RuntimeError"),
    ],
)
def test_a_damaged_folder_of_transformers_is_one_clear_error(change: dict, reason: str, tmp_path: Path) -> None:
    folder = save(build("transformers ViT"), tmp_path)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=f"holds no encoder that can be loaded: .*{reason}") as caught:
        load_encoder(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["torch, rows for the prefix", "torchvision, no head", "Swin", "PostNormTransformer"])
@pytest.mark.parametrize("what", ["no arguments", "other weights"])
def test_damage_of_each_kind_is_one_clear_error(name: str, what: str, tmp_path: Path) -> None:
    folder = save(build(name), tmp_path)
    if what == "no arguments":
        path = folder / "config.json"
        config = json.loads(path.read_text()) | {"model_args": {"nonsense": 1}}
        path.write_text(json.dumps(config))
    else:
        other = save(build("timm, none"), tmp_path / "other")
        (folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="holds no encoder that can be loaded") as caught:
        load_encoder(folder)
    assert "\n" not in str(caught.value)


def foreign_norm(encoder):
    encoder.gathered().encoder.norm = nn.RMSNorm(16)


def other_rate(encoder):
    encoder.gathered().encoder.layers[1].dropout1.p = 0.7


def other_eps(encoder):
    encoder.gathered().encoder.layers[1].norm1.eps = 0.7


def custom_activation(encoder):
    encoder.gathered().encoder.layers[0].activation = torch.sin


def tanh_gelu(encoder):
    encoder.gathered().encoder.layers[0].activation = nn.GELU(approximate="tanh")


def foreign_linear(encoder):
    class Low(nn.Linear):
        pass

    encoder.gathered().encoder.layers[0].linear2 = Low(24, 16)


def other_order(encoder):
    encoder.gathered().encoder.layers[1].norm_first = False


def other_activation(encoder):
    encoder.gathered().encoder.layers[1].activation = nn.functional.gelu


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (other_order, r"encoder.layers.1 is torch's TransformerEncoderLayer\(norm_first=False\), and .*=True"),
        (other_activation, "its layers have the activations relu, gelu: all must be equal"),
        (foreign_norm, r"encoder.norm is torch's RMSNorm\(.*\), and torch's LayerNorm"),
        (
            other_rate,
            r"encoder.layers.1.dropout1 is torch's Dropout\(p=0.7.*\), and torch's Dropout\(p=0.1",
        ),
        (other_eps, r"encoder.layers.1.norm1 is torch's LayerNorm\(.*eps=0.7.*\), and torch's LayerNorm\(.*eps=1e-05"),
        (custom_activation, "layer 0 has the activation sin, which has no name in torch: expected 'relu' or 'gelu'"),
        (tanh_gelu, r"layer 0 has the activation GELU\(approximate='tanh'\), which has no name"),
        (foreign_linear, r"encoder.layers.0.linear2 is tests's Low\(.*\), and torch's Linear"),
    ],
)
def test_layers_that_cannot_be_built_again_are_refused(change, reason: str, tmp_path: Path) -> None:
    encoder = torch_encoder(own=True)()
    change(encoder)
    with pytest.raises(TypeError, match=f"TorchEncoder cannot be exported: {reason}"):
        save(encoder, tmp_path)
    assert not list(tmp_path.iterdir())


def own_head(vit):
    vit.heads = nn.Linear(16, 3)


def own_block(vit):
    vit.encoder.layers[1].mlp[1] = nn.SiLU()


def own_norm(vit):
    vit.encoder.ln = nn.RMSNorm(16)


def own_class(vit):
    vit.__class__ = type("Derived", (type(vit),), {})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (own_head, r"heads is torch's Linear\(.*\), and torch's Sequential\(\) is what would be built again"),
        (own_block, r"encoder.layers.encoder_layer_1.mlp.1 is torch's SiLU\(\), and torch's GELU"),
        (own_norm, r"encoder.ln is torch's RMSNorm\(.*\), and torch's LayerNorm"),
        (own_class, "module is tests's Derived.*, and torchvision's VisionTransformer"),
    ],
)
def test_torchvision_models_that_cannot_be_built_again_are_refused(change, reason: str, tmp_path: Path) -> None:
    encoder = torchvision_vit()()
    change(encoder.module)
    with pytest.raises(TypeError, match=f"TorchvisionViT cannot be exported: {reason}"):
        save(encoder, tmp_path)


def test_a_norm_outside_the_model_is_refused(tmp_path: Path) -> None:
    import timm

    model = timm.create_model("test_convnext", num_classes=0)
    encoder = encoders.TimmRegions(model)
    outside = encoders.TimmRegions(model, norm=nn.LayerNorm(encoder.dim))
    with pytest.raises(TypeError, match="norm=LayerNorm is no part of module=ConvNeXt, so its weights would not be"):
        save(outside, tmp_path)


def test_a_failed_export_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = build("transformers ViT")

    def full_disk(folder: Path, **_: object) -> None:
        folder.mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(encoder.module, "save_pretrained", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save(encoder, tmp_path)
    assert not list(tmp_path.iterdir())


def test_loading_draws_no_random_numbers_for_own_descriptions(tmp_path: Path) -> None:
    folder = save(build("torch, rows for the prefix"), tmp_path)
    before = torch.get_rng_state()
    load_encoder(folder)
    assert torch.equal(torch.get_rng_state(), before)
