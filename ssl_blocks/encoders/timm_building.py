"""Models of timm by name: drawn as timm draws them, or pretrained and loaded whole.

Of pretrained ones nothing is drawn anew, and nothing but the head is dropped.
"""

import difflib
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from ssl_blocks.bounds import Depth, Heads, MlpRatio, Width
from ssl_blocks.doors import check_value
from ssl_blocks.encoders.adapter import Size
from ssl_blocks.files import at_home
from ssl_blocks.modes import without_weights
from ssl_blocks.parts.tokenize import pair

LOCAL, HUB = "local-dir", ("hf-hub", "hf_hub")  # timm's prefixes of names that are no names of its own
BOUNDED: dict[str, Any] = {"depth": Depth, "embed_dim": Width, "num_heads": Heads, "mlp_ratio": MlpRatio}
# arguments of timm.create_model that say where weights are, not what the model is
SOURCES = ("pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")


def prepared(
    name: str,
    kind: type[nn.Module],
    refuse_unfit: Callable[[nn.Module], object],
    image_size: Size,
    patch_size: Size | None,
    channels: int,
    pretrained: bool,
    wanted: Mapping[str, Any],
) -> tuple[Any, dict[str, Any]]:
    """Check what a user asks of a model of timm, and gather the arguments that all families share."""
    check_name(name)
    saved: Any = as_saved(name, kind, refuse_unfit) if pretrained or patch_size is None else None
    patch = saved.patch_embed.patch_size if patch_size is None else patch_size
    require_divisible(image_size, patch, wanted)
    if pretrained:
        refuse_contradictions(name, saved, wanted)
        refuse_unfit(saved)
    sizes = {"img_size": pair(image_size), "patch_size": pair(patch), "in_chans": channels}
    return saved, {**sizes, "global_pool": "avg", "num_classes": 0}


def build_model(
    name: str, arguments: dict[str, Any], model_args: dict[str, Any], refuse_unfit: Callable[[nn.Module], object]
) -> nn.Module:
    """Build a model of timm; say why where it cannot be built."""
    for argument, kind in BOUNDED.items():
        check_value(argument, model_args.get(argument), kind | None)
    try:
        model: nn.Module = timm.create_model(name, **arguments)
    except TypeError as error:  # another family: say why it does not fit, rather than which argument it lacks
        refuse_unfit(timm.create_model(name))
        raise TypeError(f"name={name!r} cannot be built with these arguments: {error}") from None
    except (AssertionError, RuntimeError) as error:  # heads that do not divide the width, a tag that there is not
        raise ValueError(f"name={name!r} cannot be built with {model_args}: {error}") from None
    return model


def require_divisible(image_size: Size, patch_size: Size, model_args: Mapping[str, Any]) -> None:
    """Refuse sizes that do not divide."""
    for length, side in zip(pair(image_size), pair(patch_size), strict=True):
        if side < 1 or length % side:
            raise ValueError(
                f"patch_size={patch_size} must divide image_size={image_size} ({length} % {side} is not 0)"
            )
    width, heads = model_args.get("embed_dim"), model_args.get("num_heads")
    if width is not None and heads is not None and width % heads:
        raise ValueError(f"num_heads={heads} must divide embed_dim={width}")


def as_saved(name: str, kind: type[nn.Module], refuse_unfit: Callable[[nn.Module], object]) -> Any:
    """The model as timm knows it or as it was saved, without weights, on the meta device."""
    try:
        with without_weights():
            model: nn.Module = timm.create_model(name)
    except Exception as error:  # networks, hubs and files each fail in their own way
        raise ValueError(f"name={name!r} cannot be read: {reason_of(error)}") from error
    if not isinstance(model, kind):
        refuse_unfit(model)
    return model


def class_of(name: str) -> type[nn.Module]:
    """The class that timm builds by a name."""
    return (_class_of.__wrapped__ if ":" in name else _class_of)(name)  # what a folder holds may change


@cache
def _class_of(name: str) -> type[nn.Module]:
    return type(as_saved(name, nn.Module, lambda model: None))


def refuse_contradictions(name: str, saved: Any, wanted: Mapping[str, Any]) -> None:
    """Refuse arguments that would give pretrained weights another meaning, or leave some of them out."""
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
    and attention pooling."""
    rest = {key: value for key, value in arguments.items() if key not in ("global_pool", "num_classes")}
    pool = {key: value for key, value in arguments.items() if key == "global_pool"}
    load = torch.get_default_device().type != "meta"
    try:
        model: Any = timm.create_model(name, pretrained=load, **rest)
        told = model.pretrained_cfg.get("num_classes")
        if load and told != model.num_classes:  # timm would then not mind missing weights
            raise ValueError(f"its configuration tells of {told} classes, its arguments of {model.num_classes}")
        model.reset_classifier(arguments["num_classes"], **pool)
        model.origin = _origin(name, model.pretrained_cfg)
    except Exception as error:  # networks, hubs and files each fail in their own way
        raise ValueError(f"name={name!r}: its pretrained weights cannot be loaded: {reason_of(error)}") from error
    built: nn.Module = model
    return built


def _origin(name: str, told: Mapping[str, Any]) -> dict[str, str | None]:
    """Which weights these are: of a folder that this library wrote, those that it began with, if any."""
    source, _, place = name.partition(":")
    if source == LOCAL:
        notes = json.loads((Path(place) / "config.json").read_text()).get("ssl_blocks") or {}
        return notes.get("origin") or {"name": name, "license": told.get("license")}
    tag = told.get("tag")
    full = f"{name}.{tag}" if tag and not place and "." not in name else name
    return {"name": full, "license": told.get("license")}


def rebuilding(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that build such a model again by the name of its architecture: those it was saved with, and these."""
    source, _, place = name.partition(":")
    saved: Any = {}
    if source == LOCAL:
        saved = json.loads((Path(place) / "config.json").read_text()).get("model_args")
    elif is_on_hub(name):
        saved = timm.models.load_model_config_from_hf(place)[-1]
    return {key: value for key, value in {**(saved or {}), **arguments}.items() if key not in SOURCES}


def reason_of(error: Exception) -> str:
    """Kind and words of a foreign error, in one line that is not too long."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words if len(words) <= 300 else words[:300] + ' ...'}"


def is_on_hub(name: str) -> bool:
    """Whether a name is that of a repository, such as ``hf-hub:timm/vit_tiny_patch16_224.augreg_in21k``."""
    source, _, place = name.partition(":")
    return source in HUB and bool(place)


def placed(name: str) -> str:
    """A name with the home folder in place of the ``~`` of ``local-dir:~/FOLDER``."""
    source, _, place = name.partition(":")
    return f"{LOCAL}:{at_home(place)}" if source == LOCAL else name


def check_name(name: str) -> None:
    """Refuse a name that timm does not know. Names may have a tag, or be those of a folder or a repository."""
    source, _, place = name.partition(":")
    if source == LOCAL:
        if not (Path(place) / "config.json").is_file():
            raise FileNotFoundError(f"name={name!r} must name the folder of a model, but there is no config.json in it")
    elif not is_on_hub(name) and not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise ValueError(f"name={name!r} is no timm model" + (f"; did you mean one of {near}?" if near else ""))
