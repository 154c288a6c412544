"""Layer ids, drop path, and parameter groups."""

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
import timm
import torch
from timm.layers import DropPath
from torch import Tensor, nn

from ssl_blocks import encoders
from ssl_blocks.engine import warmup_cosine
from ssl_blocks.evaluation import Classifier, FinetuneSettings, layer_ids, make_classifier, set_drop_path
from tests.encoders.families import FAMILIES, family

DEPTH = 4


def tiny(**arguments: Any) -> encoders.TimmViT:
    return encoders.timm_vit(
        image_size=8, patch_size=4, depth=DEPTH, embed_dim=16, num_heads=2, class_token=True, reg_tokens=2, **arguments
    )


class Plain(nn.Module):
    """An encoder that tells nothing about layers."""

    def __init__(self, module: nn.Module | None = None) -> None:
        super().__init__()
        self.dim, self.channels = 5, 3
        self.module = module or nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.ReLU(), nn.Linear(5, 5))

    def features(self, images: Tensor) -> Tensor:
        features: Tensor = self.module(images)
        return features


class Telling(Plain):
    """The same, with layer ids of its own."""

    def layer_ids(self) -> Mapping[str, int]:
        return {"1.weight": 1, "1.bias": 1, "3.weight": 2, "3.bias": 2}


def expected_layer(name: str) -> int:
    """What MAE's own code says of a parameter's name."""
    if name in ("cls_token", "reg_token", "pos_embed") or name.startswith("patch_embed"):
        return 0
    return int(name.split(".")[1]) + 1 if name.startswith("blocks.") else DEPTH + 1


def test_layers_of_a_vision_transformer() -> None:
    encoder = tiny()
    ids = layer_ids(encoder)
    assert ids == {name: expected_layer(name) for name, _ in encoder.module.named_parameters()}
    assert set(ids.values()) == set(range(DEPTH + 2))


BEHIND = ("norm.", "encoder.ln.", "heads.", "layernorm.", "pooler.", "encoder.norm.", "attn_pool.", "rope.")


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_of_every_family(name: str) -> None:
    encoder = family(name)
    for parameter, layer in layer_ids(encoder).items():
        block = re.search(r"(?:layers?|blocks)\.(?:encoder_layer_)?(\d+)\.", parameter)
        expected = int(block[1]) + 1 if block else encoder.depth + 1 if parameter.startswith(BEHIND) else 0
        assert layer == expected, parameter
    model = Classifier(encoder, num_classes=2)
    scales = {group["lr_scale"] for group in model.parameter_groups(weight_decay=0.05, layer_decay=0.5)}
    assert scales == {0.5**i for i in range(encoder.depth + 2)}


def test_layers_of_the_patch_puzzles_encoder() -> None:
    encoder = encoders.PostNormTransformer(grid=2, patch=3, depth=3, num_heads=3)
    ids = layer_ids(encoder)
    assert ids == {name: int(name.split(".")[1]) + 1 for name, _ in encoder.named_parameters()}


@pytest.mark.parametrize("fresh_norm", [False, True])
def test_rates_and_decay_of_every_parameter(fresh_norm: bool) -> None:
    model = make_classifier(tiny(), num_classes=3, settings=FinetuneSettings(fresh_norm=fresh_norm))
    groups = model.parameter_groups(weight_decay=0.05, layer_decay=0.65)
    found = {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    names = dict(model.named_parameters())
    assert {"backbone.pos_embed", "backbone.cls_token", "backbone.reg_token"} <= set(names)
    assert sum(len(group["params"]) for group in groups) == len(found)
    for name, parameter in names.items():
        if fresh_norm and name.startswith("backbone.norm."):
            assert id(parameter) not in found  # it takes no part
            continue
        layer = DEPTH + 1 if name.startswith(("head", "fc_norm")) else expected_layer(name.removeprefix("backbone."))
        spared = parameter.ndim == 1 or name.endswith(("pos_embed", "cls_token", "reg_token"))
        assert found[id(parameter)] == (pytest.approx(0.65 ** (DEPTH + 1 - layer)), 0.0 if spared else 0.05), name


def test_rates_reach_the_optimizer_by_the_schedule() -> None:
    model = make_classifier(tiny(), num_classes=3, settings=FinetuneSettings())
    optimizer = torch.optim.AdamW(model.parameter_groups(weight_decay=0.05, layer_decay=0.5), lr=1.0)
    warmup_cosine(optimizer, num_steps=100, warmup_steps=10).step_update(10)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        ids = {"backbone.pos_embed": 0, "backbone.blocks.0.mlp.fc1.weight": 1, "head.weight": DEPTH + 1}
        if name in ids:
            assert rates[id(parameter)] == pytest.approx(0.5 ** (DEPTH + 1 - ids[name]))


def test_a_hierarchical_model_has_its_own_layers() -> None:
    class Swin(Plain):
        pass

    swin = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=32, window_size=4, depths=(1, 1, 1, 1), num_classes=0
    )
    encoder = Swin(swin)
    encoder.dim = 768
    ids = layer_ids(encoder)
    assert ids["patch_embed.proj.weight"] == 0
    firsts = [ids[f"layers.{stage}.blocks.0.norm1.weight"] for stage in range(4)]
    assert firsts == sorted(set(firsts))
    assert firsts[0] >= 1
    model = Classifier(encoder, num_classes=2)
    assert model.layer_ids()["head.weight"] == max(ids.values()) + 1
    scales = {group["lr_scale"] for group in model.parameter_groups(weight_decay=0.1, layer_decay=0.5)}
    assert len(scales) == max(ids.values()) + 2
    assert max(scales) == 1


def test_an_encoder_may_tell_its_layers_itself() -> None:
    model = Classifier(Telling(), num_classes=2)
    assert model.layer_ids() == {
        "backbone.1.weight": 1,
        "backbone.1.bias": 1,
        "backbone.3.weight": 2,
        "backbone.3.bias": 2,
        "head.weight": 3,
        "head.bias": 3,
    }


def test_an_encoder_without_layers_is_refused_for_layer_decay_and_for_nothing_else() -> None:
    model = Classifier(Plain(), num_classes=2)
    with pytest.raises(ValueError, match=r"Sequential does not tell: it has no group_matcher, .* Set layer_decay=1\.0"):
        model.parameter_groups(weight_decay=0.05, layer_decay=0.65)
    groups = model.parameter_groups(weight_decay=0.05, layer_decay=1.0)
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert [decays[id(p)] for p in model.parameters()] == [0.05, 0.0] * 3


def test_layers_that_leave_something_out_are_refused() -> None:
    class Forgetful(Telling):
        def layer_ids(self) -> Mapping[str, int]:
            return {"1.weight": 1, "1.bias": 1, "3.weight": 2}

    class Flat(Telling):
        def layer_ids(self) -> Mapping[str, int]:
            return dict.fromkeys(super().layer_ids(), 1)

    with pytest.raises(ValueError, match=r"the layer of every parameter, but Sequential leaves out '3\.bias'"):
        layer_ids(Forgetful())
    with pytest.raises(ValueError, match=r"at least two blocks, numbered from 1, but Sequential tells of \[1\]"):
        layer_ids(Flat())


def test_blocks_thrown_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = tiny()
    groups = {"stem": r"^cls_token|reg_token|pos_embed|patch_embed", "blocks": r"^blocks"}
    monkeypatch.setattr(type(encoder.module), "group_matcher", lambda self, coarse=False: groups)
    with pytest.raises(ValueError, match=r"a layer for each of 4 blocks, numbered from 1, but VisionTransformer tells"):
        layer_ids(encoder)


# --- drop path --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("built_with", [0.0, 0.3])
def test_drop_path_reaches_every_block_with_its_rate(built_with: float) -> None:
    encoder = tiny(drop_path_rate=built_with)
    before = encoder.module.state_dict().keys()
    assert set_drop_path(encoder.module, 0.3) == pytest.approx([0.0, 0.1, 0.2, 0.3])
    for number, block in enumerate(encoder.module.blocks):
        for place in (block.drop_path1, block.drop_path2):
            assert getattr(place, "drop_prob", 0.0) == pytest.approx(0.1 * number)
            assert isinstance(place, DropPath) == (number > 0)
    assert encoder.module.state_dict().keys() == before
    set_drop_path(encoder.module, 0.0)
    assert not any(isinstance(part, DropPath) for part in encoder.module.modules())


def test_drop_path_equals_that_of_a_model_built_with_it() -> None:
    built = tiny(drop_path_rate=0.1).module
    put_in = tiny().module
    set_drop_path(put_in, 0.1)
    for ours, theirs in zip(put_in.blocks, built.blocks, strict=True):
        for name in ("drop_path1", "drop_path2"):
            mine, other = getattr(ours, name), getattr(theirs, name)
            assert type(mine) is type(other)
            assert getattr(mine, "drop_prob", 0.0) == pytest.approx(getattr(other, "drop_prob", 0.0))


def test_blocks_drop_while_training_and_only_then() -> None:
    encoder = tiny()
    set_drop_path(encoder.module, 0.999)
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    index = torch.arange(4).expand(3, -1)

    def kept() -> list[bool]:
        """Whether each block adds something to what it is given."""
        hidden = encoder.encode(encoder.embed(images), index).hidden
        return [not torch.equal(a, b) for a, b in pairwise(hidden)]

    encoder.eval()
    assert kept() == [True] * 3
    encoder.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        outcomes = [kept() for _ in range(10)]
    assert not any(last for *_, last in outcomes)
    assert any(first for first, *_ in outcomes)


def test_drop_path_that_has_no_place_is_refused() -> None:
    assert set_drop_path(Plain().module, 0.0) == []
    with pytest.raises(ValueError, match=r"drop_path=0\.1 needs blocks with a place for it .* Sequential has none"):
        set_drop_path(Plain().module, 0.1)
    with pytest.raises(ValueError, match=r"rate=1\.0 must be at least 0 and below 1"):
        set_drop_path(tiny().module, 1.0)
