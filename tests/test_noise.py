"""What draws is a pure function of its noise, with the bits that the generator would have given."""

import pytest
import torch

import ssl_blocks as sb
from ssl_blocks.data import MultiCrop, RandomResizedCropFlip
from ssl_blocks.noise import Pure
from ssl_blocks.testing.role_case import same
from tests.recipes import build, images

MEAN = STD = (0.5, 0.5, 0.5)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


FUNCTIONS = {
    "crop": RandomResizedCropFlip(8),
    "views": MultiCrop(8, 6, num_local=2, mean=MEAN, std=STD),
    "blobs": build(sb.BlobPartitioner(counts=(7, 3))).draw,
    "nothing drawn": build(sb.TokenPartitioner(), serializer=sb.OrderedSerializer()).draw,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_noise_first_gives_the_same_bits_and_leaves_the_generator_in_the_same_state(name):
    function, pure = FUNCTIONS[name], Pure(FUNCTIONS[name])
    found = []
    for seed, size in ((0, 16), (1, 16), (2, 16), (3, 24 if name in ("crop", "views") else 16)):
        ours, theirs, batch = seeded(seed), seeded(seed), images(3, size)
        noise = pure.noise(batch, generator=ours)
        found.append(pure(noise, batch))
        assert same(found[-1], function(batch, generator=theirs))
        assert torch.equal(ours.get_state(), theirs.get_state())
        assert same(pure(noise, batch), found[-1])
    assert same(found[0], found[1]) == (name == "nothing drawn")


def test_calls_are_found_out_once_for_arguments_of_the_same_shapes():
    calls = []

    def drawing(x, *, generator=None):
        calls.append(tuple(x.shape))
        return (
            x + torch.rand(x.shape, generator=generator) + torch.randint(9, x.shape[:1], generator=generator)[:, None]
        )

    pure = Pure(drawing)
    for rows in (2, 2, 3, 2):
        noise = pure.noise(torch.zeros(rows, 2), generator=seeded(0))
        assert [tuple(x.shape) for x in noise] == [(rows, 2), (rows,)]
    assert calls == [(2, 2), (3, 2)]


def test_views_of_other_shapes_are_other_arguments():
    pure = Pure(lambda views, generator=None: [torch.rand(len(x), 1, generator=generator) for x in views.images])
    for count in (2, 3):
        views = sb.Views((images(2),) * count, num_global=2)
        assert len(pure(pure.noise(views, generator=seeded(0)), views)) == count


def test_noise_that_does_not_fit_is_refused():
    pure, batch = Pure(RandomResizedCropFlip(8)), images(2)
    noise = pure.noise(batch, generator=seeded(0))
    with pytest.raises(ValueError, match="noise holds fewer draws than are asked for"):
        pure(noise[:1], batch)
    with pytest.raises(ValueError, match="noise holds 3 draws, of which 1 were not asked for"):
        pure((*noise, noise[0]), batch)


@pytest.mark.parametrize(
    "draw",
    [torch.Tensor.uniform_, lambda x, generator=None: torch.bernoulli(x.abs().clamp(max=1), generator=generator)],
)
def test_a_draw_that_needs_a_tensor_cannot_come_first(draw):
    with pytest.raises(ValueError, match=r"(uniform_|bernoulli) draws into or from a tensor: only torch.rand"):
        Pure(draw).noise(torch.zeros(2), generator=seeded(0))


def test_augmentations_and_draws_compile_into_one_graph_of_their_noise(compiled):
    found = compiled["pure"]
    assert set(found) == {"crop", "views", "blobs", "squares", "blocks", "superpixels", "sum"}
    assert all(result["graphs"] == 1 for result in found.values())
    assert all(result["same"] for result in found.values())
    assert found["views"]["draws"] > found["crop"]["draws"] > 0
