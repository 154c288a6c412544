"""EsViT's and DINO's official layout goes into the objective whole, or not at all."""

import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ssl_blocks as sb
from ssl_blocks.objectives.weights import load_esvit
from tests.objectives.weights.swin import Swin

CLASSES, HIDDEN, BOTTLENECK = 12, 10, 6
VIT = {"depth": 2, "embed_dim": 16, "num_heads": 2}


def objective(*, vit: bool = False, **options) -> sb.ViewRegionDistillation:
    torch.manual_seed(0)
    if vit:
        tokens = sb.encoders.timm_vit(image_size=32, patch_size=8, class_token=True, positions="learned", **VIT)
        encoder = sb.encoders.TokenRegions(tokens)
    else:
        sizes = {"window_size": 4, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2)}
        encoder = sb.encoders.timm_regions("swin_tiny_patch4_window7_224", image_size=32, **sizes)
    head = partial(sb.dino_head, hidden_dim=HIDDEN, bottleneck_dim=BOTTLENECK, batch_norm=options.pop("normed", False))
    return sb.ViewRegionDistillation(encoder=encoder, out_dim=CLASSES, head=head, **options).double()


def contrasted(module: nn.Module, seed: int) -> nn.Module:
    """Every value another, so that what lands in the wrong place is seen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in module.state_dict().values():
            value.copy_(value + 0.3 * torch.randn(value.shape, generator=generator, dtype=value.dtype))
    return module


def head_state(name: str, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "mlp.0.weight": (HIDDEN, 16), "mlp.0.bias": (HIDDEN,), "mlp.2.weight": (HIDDEN, HIDDEN),
        "mlp.2.bias": (HIDDEN,), "mlp.4.weight": (BOTTLENECK, HIDDEN), "mlp.4.bias": (BOTTLENECK,),
        "last_layer.weight_g": (CLASSES, 1), "last_layer.weight_v": (CLASSES, BOTTLENECK),
    }  # fmt: skip
    return {f"{name}.{k}": torch.randn(s, generator=generator, dtype=torch.float64) for k, s in shapes.items()}


def network(seed: int) -> tuple[Swin, dict[str, Tensor]]:
    torch.manual_seed(seed)
    swin = contrasted(Swin().double(), seed)
    return swin, swin.official() | head_state("head", seed + 1) | head_state("head_dense", seed + 2)


def checkpoint(**changes) -> dict[str, object]:
    """As the official script saves it: the student behind DistributedDataParallel, options and counts beside it."""
    centers = {"center": torch.rand(1, CLASSES).double(), "center_grid": torch.rand(1, CLASSES).double()}
    student = {f"module.{name}": value for name, value in network(10)[1].items()}
    return {"student": student, "teacher": network(20)[1], "dino_loss": centers, "epoch": 3, "optimizer": {}} | changes


def slow_head(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    own = {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}
    x = F.gelu(x @ own["mlp.0.weight"].T + own["mlp.0.bias"])
    x = F.gelu(x @ own["mlp.2.weight"].T + own["mlp.2.bias"])
    x = x @ own["mlp.4.weight"].T + own["mlp.4.bias"]
    v = own["last_layer.weight_v"]
    return F.normalize(x, dim=-1) @ (own["last_layer.weight_g"] * v / v.norm(dim=1, keepdim=True)).T


def test_regions_and_logits_are_those_of_the_layout() -> None:
    ours, saved = objective().eval(), checkpoint()
    load_esvit(ours, saved)
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    for look, seed in ((ours.student, 10), (ours.teacher.copy, 20)):
        found, (swin, weights) = look((images,)), network(seed)
        regions = swin(images)
        torch.testing.assert_close(found.maps[0], regions, rtol=0, atol=1e-8)
        torch.testing.assert_close(found.views, slow_head(weights, "head", regions.mean(1)), rtol=0, atol=1e-8)
        wanted = slow_head(weights, "head_dense", regions.flatten(0, 1))
        torch.testing.assert_close(found.regions, wanted, rtol=0, atol=1e-8)
    assert torch.equal(ours.center.value, saved["dino_loss"]["center"][0])
    assert torch.equal(ours.region_center.value, saved["dino_loss"]["center_grid"][0])


def test_a_vision_transformer_of_dino_without_regions() -> None:
    ours = objective(vit=True, region_weight=0.0)
    vit = contrasted(objective(vit=True).student.encoder.encoder.module, 5).state_dict()
    weights = {f"backbone.{name}": value for name, value in vit.items()} | head_state("head", 6)
    load_esvit(ours, {"student": weights, "teacher": weights, "dino_loss": {"center": torch.ones(1, CLASSES)}})
    for network_ in (ours.student, ours.teacher.copy):
        assert all(
            torch.equal(value, vit[name]) for name, value in network_.encoder.encoder.module.state_dict().items()
        )
    assert ours.center.value.eq(1).all()


@pytest.mark.parametrize("whole", [True, False])
def test_the_encoder_alone_is_the_teachers(whole: bool) -> None:
    ours = objective()
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    load_esvit(ours, checkpoint() if whole else network(20)[1], encoder_only=True)
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    for encoder in (ours.encoder, ours.export_encoder()):
        torch.testing.assert_close(encoder.eval().regions(images).map, network(20)[0](images), rtol=0, atol=1e-8)
    moved = {name for name, value in ours.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all(".encoder." in name for name in moved)


def without(state: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if part not in name}


NORMED = {"module.head.mlp.1.running_mean": torch.zeros(HIDDEN)}
WRONG = {
    "flat": ({}, lambda: network(1)[1], "must hold student and teacher, got"),
    "no centre": ({}, lambda: without(checkpoint(), "dino_loss"), "must hold dino_loss, which has the centres"),
    "no regions": (
        {},
        lambda: checkpoint(**{n: without(network(1)[1], "head_dense") for n in ("student", "teacher")}),
        "has no head for regions: build the objective with region_weight=0",
    ),
    "regions": ({"region_weight": 0.0}, checkpoint, "has a head for regions (head_dense), but the objective none"),
    "another family": ({"vit": True}, checkpoint, "the checkpoint lacks student.encoder.encoder.module."),
    "classes": (
        {},
        lambda: checkpoint(dino_loss={"center": torch.ones(1, 3), "center_grid": torch.ones(1, CLASSES)}),
        "center.value must have shape (12,), but the checkpoint's has (3,)",
    ),
    "norms": (
        {"normed": True},
        lambda: checkpoint(student={**checkpoint()["student"], **NORMED}),
        "batch norms behind Linears with biases (use_bn_in_head)",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_named_and_nothing_is_changed(case: str) -> None:
    options, state, message = WRONG[case]
    ours = objective(**options)
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    with pytest.raises(ValueError, match=re.escape(message)):
        load_esvit(ours, state())
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())
