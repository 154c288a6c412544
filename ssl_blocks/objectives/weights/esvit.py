"""Checkpoints in the layout of EsViT's and DINO's official code: student, teacher and centres."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ssl_blocks.doors import checked
from ssl_blocks.encoders.weights.filling import copy_all
from ssl_blocks.encoders.weights.state import Source, read_checkpoint, read_state
from ssl_blocks.objectives.distillation import ViewRegionDistillation

NETWORKS = {"student": "student.", "teacher": "teacher.copy."}
CENTERS = {"center": "center.value", "center_grid": "region_center.value"}
HEADS = {"head_dense.": "region_head.", "head.": "view_head."}
LAST = {
    "last_layer.weight_g": "last_layer.parametrizations.weight.original0",
    "last_layer.weight_v": "last_layer.parametrizations.weight.original1",
}
COMPUTED = ("relative_position_index", "attn_mask")  # what Swin's code saves beside its weights
DOWNSAMPLE = re.compile(r"^layers\.(\d+)\.downsample\.")  # at the end of a stage; timm has it at the next one's start


@checked
def load_esvit(objective: ViewRegionDistillation, source: Source, *, encoder_only: bool = False) -> None:
    """Put an official checkpoint of EsViT or DINO into an objective, to pretrain on or to use its encoder.

    Student, teacher, the heads of both and the centres are filled, all of them, or the call is refused before the first
    is changed. Swin keeps its names but for the merging of patches, which timm counts with the stage that follows.

    Args:
        objective: of the checkpoint's sizes: an encoder of `timm_regions` (Swin with the file's windows) or
            `TokenRegions` of a `timm_vit`, and heads of `dino_head`. Files without ``head_dense``, DINO's among them,
            fit ``region_weight=0``.
        source: a file, or a mapping with ``student`` and ``teacher``; see `read_state`.
        encoder_only: fill the encoders of student and teacher with the teacher's, which is what EsViT evaluates, and
            leave heads and centres as they are; the file may then be the weights of one network alone.

    Raises:
        ValueError: if names or shapes differ, or the file lacks the networks, their heads or the centres.

    Examples:
        >>> import ssl_blocks as sb
        >>> encoder = sb.encoders.timm_regions("resnet10t", image_size=64)
        >>> objective = sb.ViewRegionDistillation(encoder=encoder, out_dim=16)
        >>> backbone = {f"backbone.{name}": value for name, value in encoder.module.state_dict().items()}
        >>> load_esvit(objective, {"student": backbone, "teacher": backbone}, encoder_only=True)
    """
    held = read_checkpoint(source)
    whole = all(isinstance(held.get(network), Mapping) for network in NETWORKS)
    if not whole and not encoder_only:
        raise ValueError(
            f"the checkpoint must hold student and teacher, got {sorted(map(str, held))[:5]}: give encoder_only=True "
            "for the weights of one network"
        )
    place = next(name for name, part in objective.student.named_modules() if part is objective.encoder.module) + "."
    found: dict[str, Tensor] = {}
    for network, ours in NETWORKS.items():
        theirs = read_state(held["teacher" if encoder_only else network]) if whole else read_state(held)
        found |= {ours + _translated(name, place): value for name, value in theirs.items() if not _is_computed(name)}
    own = objective.state_dict(keep_vars=True)
    if encoder_only:
        encoders = tuple(f"{network}{place}" for network in NETWORKS.values())
        own, found = ({n: t for n, t in each.items() if n.startswith(encoders)} for each in (own, found))
    else:
        found |= _centers(held.get("dino_loss"))
        _check_heads(found, own)
    copy_all(found, own)


def _is_computed(name: str) -> bool:
    return name.rpartition(".")[2] in COMPUTED


def _translated(name: str, place: str) -> str:
    for theirs, ours in HEADS.items():
        if name.startswith(theirs):
            rest = name.removeprefix(theirs).replace("mlp.", "layers.", 1)
            return ours + LAST.get(rest, rest)
    name = DOWNSAMPLE.sub(lambda stage: f"layers.{int(stage[1]) + 1}.downsample.", name.removeprefix("backbone."))
    return place + name


def _centers(loss: Any) -> dict[str, Tensor]:
    if not isinstance(loss, Mapping):
        raise ValueError("the checkpoint must hold dino_loss, which has the centres: give encoder_only=True without it")
    centers = {CENTERS.get(str(name), str(name)): value for name, value in loss.items() if isinstance(value, Tensor)}
    return {name: value.reshape(-1) for name, value in centers.items()}


def _check_heads(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Say what is the matter with heads as a whole."""
    theirs, ours = (any(name.startswith("student.region_head.") for name in names) for names in (found, own))
    if theirs != ours:
        what = "has a head for regions (head_dense), but the objective none" if theirs else "has no head for regions"
        wanted = "region_weight above 0" if theirs else "region_weight=0"
        raise ValueError(f"the checkpoint {what}: build the objective with {wanted}")
    normed = "student.view_head.layers.1.running_mean"
    if normed in found and "student.view_head.layers.0.bias" in found:
        raise ValueError(
            "the checkpoint's heads have batch norms behind Linears with biases (use_bn_in_head), but dino_head leaves "
            "these biases out: load it with encoder_only=True"
        )
