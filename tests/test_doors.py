"""Every public function and constructor refuses what it does not take, in the library's words."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import FunctionType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import pytest
import torch
from annotated_types import Ge, Gt, Le, Lt
from jaxtyping import AbstractArray, Float, Int
from torch import Tensor

import ssl_blocks as sb
from ssl_blocks.bounds import Depth, Share
from ssl_blocks.data import ImageSplit
from ssl_blocks.doors import check_value, check_weights, checked

ROOMS = ("", ".parts", ".encoders", ".encoders.weights", ".objectives", ".objectives.weights", ".data", ".evaluation")
ROOMS += (".visualize",)
# bases for code of users, whose arguments are theirs; a named tuple; what `--help` loads, without torch; what only
# the library makes, of numbers that may be infinite
OPEN = {"Objective", "Protocol", "ImageShape", "Score", "FeatureQuality"}


class Odd:
    """Of no kind that anything takes."""


def public() -> dict[str, Callable[..., Any]]:
    """Functions, and of classes constructors, calls and methods, by name."""
    found = {}
    for room in ROOMS:
        module = import_module(f"ssl_blocks{room}")
        for name in getattr(module, "__all__", vars(module)):
            one = getattr(module, name)
            if name in OPEN or not getattr(one, "__module__", "").startswith("ssl_blocks"):
                continue
            if isinstance(one, FunctionType):
                found[name] = one
            elif inspect.isclass(one) and not is_left_out(one):
                found |= dict(methods(one))
    return found


def is_left_out(one: type) -> bool:
    return getattr(one, "_is_protocol", False) or issubclass(one, Exception) or hasattr(one, "model_fields")


def door(function: Any) -> Any:
    """What the library's users call: tests look at the types of data classes before it does."""
    while function is not None and function.__code__.co_name != "guarded":
        function = getattr(function, "__wrapped__", None)
    return function


def methods(one: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name, member in vars(one).items():
        inner = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        if isinstance(inner, FunctionType) and (name in ("__init__", "__call__") or not name.startswith("_")):
            yield f"{one.__name__}.{name}", inner


FOUND = public()
PUBLIC = {name: door(function) for name, function in FOUND.items() if door(function)}


def atoms(hint: Any) -> Iterator[Any]:
    """The kinds that a hint is made of, bounds with them."""
    if get_origin(hint) in (Union, UnionType):
        for member in get_args(hint):
            yield from atoms(member)
    else:
        yield hint


def wrong(hint: Any) -> Iterator[Any]:
    """Values that no kind of a hint takes."""
    kinds = list(atoms(hint))
    plain = [get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in kinds]
    if any(kind in (Any, object, inspect.Parameter.empty) or isinstance(kind, str | TypeVar) for kind in plain):
        return
    if any(getattr(kind, "_is_protocol", False) and not getattr(kind, "_is_runtime_protocol", False) for kind in plain):
        return
    yield Odd()
    if int in plain and float not in plain:
        yield from (2.5, True, math.nan)
    if float in plain:
        yield from (math.nan, math.inf, True)
    if bool in plain:
        yield from (1, 0.5)
    if {int, float, bool} & set(plain) and not {str, torch.device} & set(plain):
        yield from ("3", b"3")
    if any(get_origin(kind) is Literal for kind in plain) and str not in plain:
        yield "nonsense"
    if len(kinds) == 1:
        yield from beyond(kinds[0])
        yield from tensors(plain[0])


def beyond(kind: Any) -> Iterator[Any]:
    for limit in get_args(kind)[1:] if get_origin(kind) is Annotated else ():
        match limit:
            case Ge(ge=low):
                yield low - 1
            case Gt(gt=low):
                yield low
            case Le(le=high):
                yield high + 1
            case Lt(lt=high):
                yield high


def tensors(kind: Any) -> Iterator[Any]:
    if isinstance(kind, type) and issubclass(kind, AbstractArray) and issubclass(kind.array_type, Tensor):
        yield [1.0]
        if isinstance(kind.dtypes, tuple):
            yield torch.zeros(1, dtype=torch.complex64)
        if not any(name.startswith(("*", ".")) for name in kind.dim_str.split()):
            kinds = kind.dtypes if isinstance(kind.dtypes, tuple) else ("float32",)
            dtype = next(getattr(torch, word) for word in ("float32", "int64", "bool", "uint8") if word in kinds)
            yield torch.zeros((1,) * 9, dtype=dtype)


@pytest.mark.parametrize("name", PUBLIC)
def test_wrong_arguments_are_named(name: str) -> None:
    function = PUBLIC[name]
    own = "." in name  # a method, whose first argument is the object itself
    try:
        hints = get_type_hints(inspect.unwrap(function), include_extras=True)
    except NameError:  # names that are imported for type checkers alone
        hints = inspect.unwrap(function).__annotations__
    for parameter in list(inspect.signature(function).parameters.values())[own:]:
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        for value in wrong(hints.get(parameter.name, Any)):
            with pytest.raises((TypeError, ValueError)) as caught:
                function(*[Odd()] * own, **{parameter.name: value})
            said, last = str(caught.value), caught.traceback[-1].path
            assert Path(last).name == "doors.py", f"{parameter.name}={value!r}: {said}"
            assert said.startswith(parameter.name), said
            assert " must be " in said, said
            assert isinstance(value, Odd | Tensor | list) or repr(value) in said


def test_all_that_is_public_is_checked_and_the_walk_sees_it() -> None:
    assert sorted(set(FOUND) - set(PUBLIC)) == []
    assert {"Grid.coordinates", "SegmentDecoder.__init__", "predicted_mse", "PatchTokenizer.__call__"} <= set(PUBLIC)
    assert len(PUBLIC) > 250
    refused = sum(
        1 for f in PUBLIC.values() for _ in wrong(next(iter(inspect.unwrap(f).__annotations__.values()), Any))
    )
    assert refused > 300


def rows(**changes: Tensor) -> dict[str, Tensor]:
    shape = (2, 3, 5)
    given = {"predictions": torch.rand(shape), "targets": torch.rand(shape), "is_target": torch.ones(2, 3).bool()}
    return given | changes


MISTAKES: dict[str, tuple[Callable[[], object], str]] = {
    "half a row": (lambda: door(sb.Grid.__init__)(Odd(), 4, 2.5), "sizes=2.5 must be a whole number"),
    "too many tokens": (lambda: sb.Grid(2**20, 2**20), "has 1,099,511,627,776 tokens, but at most 2,147,483,647"),
    "a shape": (
        lambda: sb.predicted_mse(**rows(targets=torch.rand(2, 3, 4))),
        "targets of shape (2, 3, 4) must be of shape [B, T, P], P = 5 as in predictions",
    ),
    "a mask of numbers": (
        lambda: sb.predicted_l1(**rows(is_target=torch.ones(2, 3))),
        "is_target of torch.float32 must be torch.bool",
    ),
    "devices": (
        lambda: sb.predicted_mse(**rows(targets=torch.rand(2, 3, 5, device="meta"))),
        "targets on meta must be on cpu, where predictions is",
    ),
    "small integers": (
        lambda: sb.values.gather_tokens(torch.rand(2, 4, 3), torch.zeros(2, 1, dtype=torch.int8)),
        "index of torch.int8 must be torch.int64",
    ),
    "a device": (lambda: sb.Grid(2, 2).coordinates("gpu"), "device='gpu' must be a device, such as 'cpu' or 'cuda:0'"),
    "one of several": (
        lambda: sb.SquarePartitioner(sides=(2, 0)),
        "sides=(2, 0) must be several values, each at least",
    ),
    "one of two": (
        lambda: sb.BlobPartitioner(counts=(3,), std_range=(0.5, "1")),
        "std_range=(0.5, '1') must be 2 values: number 1 a number",
    ),
    "too few": (lambda: sb.BlobPartitioner(counts=(3,), std_range=(0.5,)), "std_range=(0.5,) must be 2 values"),
    "in a mapping": (
        lambda: sb.WeightedSum({"one": 3}),
        "objectives={'one': 3} must be a mapping, in which 3 must be an Objective",
    ),
    "an empty batch": (
        lambda: sb.TokenPartitioner()(torch.rand(0, 3, 8, 8), sb.Grid(2, 2)),
        "images of shape (0, 3, 8, 8) must be at least one",
    ),
    "a model's argument": (
        lambda: sb.encoders.timm_vit(image_size=8, patch_size=4, depth="3"),
        "depth='3' must be a whole number or None",
    ),
    "steps": (
        lambda: sb.Serialization(torch.arange(4)[None], torch.arange(4)[None], (1, 1)),
        "step_sizes=(1, 1) must add up to the 4 tokens of an image",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_words(mistake: str) -> None:
    make, message = MISTAKES[mistake]
    with pytest.raises((TypeError, ValueError)) as caught:
        make()
    assert message in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float64, torch.float16])
def test_images_meet_weights_of_their_precision(dtype: torch.dtype) -> None:
    encoder = sb.encoders.timm_vit(image_size=8, patch_size=4, depth=1, embed_dim=16, num_heads=2)
    with pytest.raises(TypeError, match=rf"(x|images) of {dtype} must be"):
        encoder.embed(torch.zeros(2, 3, 8, 8).to(dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        encoder.embed(torch.zeros(2, 3, 8, 8, dtype=torch.bfloat16))
    encoder.double().embed(torch.zeros(2, 3, 8, 8).double())


def test_images_and_weights_share_a_device_and_weights_are_numbers() -> None:
    images = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"images on cpu must be on meta, where the weights are"):
        check_weights("images", images, torch.zeros(2, device="meta"))
    with pytest.raises(TypeError, match=r"the weights that images meet are torch.int8, but must be floating-point"):
        check_weights("images", images, torch.zeros(2, dtype=torch.int8))


def test_what_holds_tensors_may_hold_them_apart() -> None:
    """Images that are scored again and again stay on a GPU; their labels are of use on the CPU."""
    split = ImageSplit(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4))
    moved = dataclasses.replace(split, images=split.images.to("meta"))
    assert (moved.images.is_meta, moved.labels.is_meta) == (True, False)


@checked
def told(
    x: Float[Tensor, "b n"], index: Int[Tensor, " b"] | None = None, *rest: Depth, share: Share | Literal["all"] = "all"
) -> None:
    """For the test alone."""


def test_what_fits_passes_and_all_that_is_left_is_looked_at() -> None:
    told(torch.zeros(2, 3), torch.zeros(2).long(), 1, 1000, share=0.5)
    told(torch.zeros(2, 3), share=1)
    with pytest.raises(ValueError, match=r"rest=1001 must be at least 1 and at most 1,000"):
        told(torch.zeros(2, 3), None, 3, 1001)
    with pytest.raises(ValueError, match=r"share=1.5 must be at least 0 and at most 1"):
        told(torch.zeros(2, 3), share=1.5)
    with pytest.raises(ValueError, match=r"index of shape \(3,\) must be of shape \[B\], B = 2 as in x"):
        told(torch.zeros(2, 3), torch.zeros(3).long())
    check_value("depth", 3, Depth | None)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        told()
