"""Pretrained models of timm, loaded whole: nothing is drawn anew, and nothing but the head is dropped."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from ssl_blocks.encoders.timm_models import LOCAL, is_on_hub

# arguments of timm.create_model that say where weights are, not what the model is
SOURCES = ("pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")


def as_saved(name: str, kind: type[nn.Module], refuse_unfit: Callable[[nn.Module], object]) -> Any:
    """The model as timm knows it or as it was saved, without weights, on the meta device.

    Raises:
        ValueError: if it cannot be built, or what describes it cannot be read.
        TypeError: if it is of another family.
    """
    try:
        with torch.device("meta"):
            model: nn.Module = timm.create_model(name)
    except Exception as error:  # networks, hubs and files each fail in their own way
        raise ValueError(f"name={name!r} cannot be read: {_reason(error)}") from error
    if not isinstance(model, kind):
        refuse_unfit(model)
    return model


def refuse_contradictions(name: str, saved: Any, wanted: Mapping[str, Any]) -> None:
    """Refuse arguments that would give pretrained weights another meaning, or leave some of them out.

    Args:
        name: of the model.
        saved: the model as its weights were saved.
        wanted: what the caller asks for, by name of the argument; ``None`` is whatever the model has.

    Raises:
        ValueError: naming the argument.
    """
    there = {
        "embed_dim": saved.embed_dim,
        "depth": len(saved.blocks),
        "num_heads": saved.blocks[0].attn.num_heads,
        "class_token": saved.cls_token is not None,
    }
    for argument, value in there.items():
        if wanted.get(argument) not in (None, value):
            raise ValueError(
                f"{argument}={wanted[argument]!r} contradicts the pretrained {name!r}, which has {argument}={value!r}: "
                f"leave {argument} out"
            )
    if isinstance(saved.norm, nn.Identity) and not isinstance(saved.fc_norm, nn.Identity):
        raise ValueError(
            f"the pretrained {name!r} has its final norm behind the pooling (fc_norm), so tokens would stay "
            "unnormalised: take a model that has it in front"
        )


def create_pretrained(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Build a model with its pretrained weights; on the meta device, without.

    It is built as it was saved, so that timm loads every weight strictly. Only then its head is taken off: classifier
    and attention pooling.

    Args:
        name: of the model.
        arguments: handed to timm; ``global_pool`` and ``num_classes`` are those of the model that is returned.

    Raises:
        ValueError: if weights cannot be had, are missing or left over.
    """
    rest = {key: value for key, value in arguments.items() if key not in ("global_pool", "num_classes")}
    load = torch.get_default_device().type != "meta"
    try:
        model: Any = timm.create_model(name, pretrained=load, **rest)
        told = model.pretrained_cfg.get("num_classes")
        if load and told != model.num_classes:  # timm would then not mind missing weights
            raise ValueError(f"its configuration tells of {told} classes, its arguments of {model.num_classes}")
        model.reset_classifier(arguments["num_classes"], arguments["global_pool"])
    except Exception as error:  # networks, hubs and files each fail in their own way
        raise ValueError(f"name={name!r}: its pretrained weights cannot be loaded: {_reason(error)}") from error
    built: nn.Module = model
    return built


def rebuilding(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that build such a model again by the name of its architecture: those it was saved with, and these."""
    source, _, place = name.partition(":")
    saved: Any = {}
    if source == LOCAL:
        saved = json.loads((Path(place) / "config.json").read_text()).get("model_args")
    elif is_on_hub(name):
        saved = timm.models.load_model_config_from_hf(place)[-1]
    return {key: value for key, value in {**(saved or {}), **arguments}.items() if key not in SOURCES}


def _reason(error: Exception) -> str:
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words if len(words) <= 300 else words[:300] + ' ...'}"
