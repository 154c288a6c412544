"""Runs of these tests draw few examples, which takes long."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package", autouse=True)
def few_examples() -> Iterator[None]:
    """Two images in the pictures of a run, one of them step by step."""
    from ssl_blocks.pretrain import figures

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "NUM_EXAMPLES", 2)
        patch.setattr(figures, "NUM_IN_STEPS", 1)
        yield
