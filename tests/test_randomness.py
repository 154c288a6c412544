import pytest
import torch
from scipy.stats import chisquare

from ssl_blocks.randomness import check_generator, random_ranks, seeded_generator


def test_each_row_of_random_ranks_is_a_permutation(generator):
    ranks = random_ranks(50, 7, generator=generator, device="cpu")
    assert ranks.dtype == torch.int64
    assert torch.equal(ranks.sort(1).values, torch.arange(7).expand(50, -1))


def test_random_ranks_repeat_with_the_seed_and_differ_between_images():
    first, second = (random_ranks(20, 8, generator=torch.Generator().manual_seed(3), device=None) for _ in range(2))
    assert torch.equal(first, second)
    assert len({tuple(row) for row in first.tolist()}) == 20
    assert not torch.equal(first, random_ranks(20, 8, generator=torch.Generator().manual_seed(4), device=None))


def test_random_ranks_follow_the_global_seed_without_a_generator():
    torch.manual_seed(5)
    first = random_ranks(2, 8, generator=None, device="cpu")
    torch.manual_seed(5)
    assert torch.equal(first, random_ranks(2, 8, generator=None, device="cpu"))


def test_every_permutation_of_random_ranks_is_equally_likely(generator):
    ranks = random_ranks(12_000, 3, generator=generator, device="cpu")
    seen = torch.bincount(ranks @ torch.tensor([9, 3, 1]))
    seen = seen[seen > 0].numpy()
    assert len(seen) == 6
    assert chisquare(seen).pvalue > 1e-3


def test_a_generator_on_the_same_device_or_none_is_accepted(generator):
    for device in ("cpu", torch.device("cpu"), torch.device("cpu", 0), None):
        check_generator(generator, device)
        check_generator(None, device)


def test_a_generator_on_another_device_is_refused(generator):
    with pytest.raises(ValueError, match="generator is on cpu, but the draw is made on meta: give one on that device"):
        check_generator(generator, "meta")
    with pytest.raises(ValueError, match="generator is on cpu, but the draw is made on cuda:1"):
        check_generator(generator, torch.device("cuda", 1))


class OnSecondAccelerator(torch.Generator):
    """Says that it lives on an accelerator, which the machine need not have."""

    device = torch.device("cuda", 1)


def test_a_generator_on_another_accelerator_of_the_same_kind_is_refused():
    generator = OnSecondAccelerator()
    check_generator(generator, "cuda:1")
    check_generator(generator, "cuda")
    with pytest.raises(ValueError, match="generator is on cuda:1, but the draw is made on cuda:0: give one on that"):
        check_generator(generator, "cuda:0")


def test_without_a_device_the_generator_must_be_on_the_default_device(generator):
    with torch.device("meta"), pytest.raises(ValueError, match="generator is on cpu, but the draw is made on meta"):
        check_generator(generator, None)


def first_draw(*key: int) -> float:
    return torch.rand((), generator=seeded_generator("cpu", *key), dtype=torch.float64).item()


def test_seeded_generator_repeats_with_its_key_whatever_the_global_seed():
    torch.manual_seed(0)
    first = first_draw(7, 0, 3)
    torch.manual_seed(1)
    torch.rand(5)
    assert first_draw(7, 0, 3) == first


def test_seeded_generator_depends_on_every_number_and_its_place():
    keys = [(), (0,), (0, 0), (1, 23), (12, 3), (3, 12), (0, 0, 1), (0, 1, 0), (1, 0, 0), (-1, 0, 0), (2**40, 0, 0)]
    assert len({first_draw(*key) for key in keys}) == len(keys)


def test_seeded_generators_of_neighbouring_steps_are_uncorrelated():
    draws = torch.stack([torch.rand(200, generator=seeded_generator("cpu", 0, 0, step)) for step in range(50)])
    correlation = torch.corrcoef(draws) - torch.eye(50)
    assert correlation.abs().max() < 0.35  # 1225 pairs of 200 numbers: five standard deviations
