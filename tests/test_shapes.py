"""What signatures say is checked while tests run: axes where they are named, types everywhere."""

import pytest
import torch

from ssl_blocks.data.colors import adjust_hue
from ssl_blocks.randomness import seeded_generator


def test_axes_that_differ_are_an_error() -> None:
    with pytest.raises(TypeError, match="Type-check error"):
        adjust_hue(torch.zeros(2, 3, 4, 4), torch.zeros(3))  # a function without doors of its own


def test_another_type_is_an_error_where_no_axes_are_named() -> None:
    with pytest.raises(TypeError, match="key='0' violates type hint"):
        seeded_generator("cpu", "0")  # type: ignore[arg-type]
