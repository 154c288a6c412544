"""Sizes and ranges of the section ``data``, as a command line and a file give them."""

from typing import Any

import pytest

from ssl_blocks.cli.command import parse_config
from ssl_blocks.pretrain.config import RunConfig


def parsed(**data: Any) -> Any:
    given = {f"data.{name}": value for name, value in data.items()}
    return parse_config(RunConfig, {"name": "r", **given}, base={}, source="").data


@pytest.mark.parametrize(("given", "meant"), [("64", 64), ("64,96", (64, 96)), ("[64,96]", (64, 96)), ("None", None)])
def test_image_size_is_a_side_or_height_and_width(given: str, meant: Any) -> None:
    assert parsed(image_size=given).image_size == meant


def test_sizes_of_a_file_stay_as_they_are() -> None:
    stored = parsed(image_size="64,96").model_dump(mode="json")
    assert parse_config(RunConfig, {"name": "r"}, base={"data": stored}, source="").data.image_size == (64, 96)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("64,96,3", "data.image_size=64,96,3 must be one side, or height and width"),
        ("0", "data.image_size=0 must be greater than 0"),
        ("large", "data.image_size=large must be a whole number, or two"),
        ("16.5", "data.image_size=16.5 must be a whole number, or two"),
    ],
)
def test_other_sizes_are_refused(given: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parsed(image_size=given)


def test_ranges() -> None:
    assert parsed(value_range="-1000,3000").value_range == (-1000.0, 3000.0)
    assert parsed(value_range="None").value_range is None
    with pytest.raises(ValueError, match=r"data.value_range=4095,0 must be \(black, white\)"):
        parsed(value_range="4095,0")
