"""What signatures say is checked while tests run: axes where they are named, types everywhere."""

import pytest
import torch
from beartype import beartype
from jaxtyping import Float
from torch import Tensor

from ssl_blocks.data.colors import adjust_hue
from ssl_blocks.randomness import seeded_generator
from tests.shapes import checked


def test_axes_that_differ_are_an_error() -> None:
    with pytest.raises(TypeError, match="Type-check error"):
        adjust_hue(torch.zeros(2, 3, 4, 4), torch.zeros(3))  # a function without doors of its own


def test_another_type_is_an_error_where_no_axes_are_named() -> None:
    with pytest.raises(TypeError, match="key='0' violates type hint"):
        seeded_generator("cpu", "0")  # type: ignore[arg-type]


class Scaling:
    """Says what comes of a tensor by a number of its own."""

    def __init__(self, width: int) -> None:
        self.width = width

    def __call__(self, x: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
        return torch.zeros(len(x), self.width)


def test_what_was_looked_at_is_not_taken_for_what_was_not() -> None:
    call = checked(typechecker=beartype)(Scaling.__call__)
    fine, wrong = Scaling(3), Scaling(4)
    for x in (torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(5, 3)):
        call(fine, x)
    for one, x in ((wrong, torch.zeros(2, 3)), (fine, torch.zeros(2, 4)), (fine, torch.zeros(2, 3).long())):
        with pytest.raises(TypeError, match="Type-check error"):
            call(one, x)
    fine.width = 4
    assert call(fine, torch.zeros(2, 3)).shape == (2, 4)  # seen before: it is not looked at again
