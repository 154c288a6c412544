"""Random draws that follow one generator on one device."""

import hashlib

import torch
from jaxtyping import Float, Int
from torch import Tensor


def check_generator(generator: torch.Generator | None, device: torch.device | str | None) -> None:
    """Refuse a generator that cannot draw on ``device``, before torch fails deep inside.

    Raises:
        ValueError: if the generator lives on another kind of device, or on another accelerator.
    """
    if generator is None:
        return
    wanted = torch.get_default_device() if device is None else torch.device(device)
    have = generator.device
    same_index = wanted.index is None or have.index is None or wanted.index == have.index
    if have.type != wanted.type or not same_index:
        raise ValueError(f"generator is on {have}, but the draw is made on {wanted}: give one on that device")


def random_ranks(
    batch: int, count: int, *, generator: torch.Generator | None, device: torch.device | str | None
) -> Int[Tensor, "batch count"]:
    """Draw one random permutation of ``0..count-1`` per image, ``[batch, count]`` int64.

    Sorting noise needs no loop over images and no synchronisation (MAE draws its masks so, too).
    """
    noise: Float[Tensor, "batch count"] = torch.rand(batch, count, generator=generator, device=device)
    return noise.argsort(dim=1, stable=True)


def seeded_generator(device: torch.device | str, *key: int) -> torch.Generator:
    """Make a generator that depends on every number of ``key``, such as (seed, rank, step), and on nothing else.

    Examples:
        >>> a, b = (seeded_generator("cpu", 0, 0, step) for step in (3, 3))
        >>> torch.equal(torch.rand(2, generator=a), torch.rand(2, generator=b))
        True
    """
    return torch.Generator(device=device).manual_seed(mix_seed(*key))


def mix_seed(*key: int) -> int:
    """Make one seed out of several numbers; keys that differ anywhere, or in length, make unrelated seeds."""
    digest = hashlib.blake2b(repr(tuple(int(number) for number in key)).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")
