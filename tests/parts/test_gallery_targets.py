"""Codebooks, gradients, frequencies: targets equal their twins."""

import pytest
import torch

import ssl_blocks as sb
from ssl_blocks.parts import ClusterTarget, DCTTarget, HOGTarget, kmeans
from tests.recipes import images
from tests.reference import cosine_transform, cut_patches, histogram_of_gradients, lloyd, nearest_center

TOKENIZER = sb.PatchTokenizer(image_size=(8, 12), patch_size=4)


def pictures(batch=2, seed=0):
    return torch.randn(batch, 3, 8, 12, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(3))
def test_kmeans_equals_lloyds_iterations(seed):
    values = torch.randn(40, 3, generator=torch.Generator().manual_seed(seed))
    first = kmeans(values, 5, iterations=0, seed=seed)
    assert all(any(torch.equal(row, value) for value in values) for row in first)
    assert len(first.unique(dim=0)) == 5
    torch.testing.assert_close(kmeans(values, 5, iterations=4, seed=seed), lloyd(values, first, 4))
    assert not torch.equal(first, kmeans(values, 5, iterations=0, seed=seed + 10))


def test_a_centre_without_values_stays():
    values = torch.tensor([[0.0], [0.0], [0.0], [8.0]])
    found = kmeans(values, 3, seed=0)
    assert found.isfinite().all()
    assert set(found.flatten().tolist()) <= {0.0, 8.0}


@pytest.mark.parametrize("count", [0, 5])
def test_kmeans_needs_as_many_values(count):
    with pytest.raises(ValueError, match=f"count={count} must be at least 1 and at most"):
        kmeans(torch.rand(4, 2), count)


def test_clusters_are_the_nearest_centres():
    pixels = sb.PixelTarget(TOKENIZER)
    centers = torch.randn(6, 48, generator=torch.Generator().manual_seed(1))
    found = ClusterTarget(pixels, centers)(pictures())
    assert torch.equal(found.sum(-1), torch.ones(2, 6))
    for image, rows in zip(pixels(pictures()), found, strict=True):
        assert rows.argmax(-1).tolist() == nearest_center(image, centers)
    assert len(found.argmax(-1).unique()) > 2


def test_the_codebook_is_saved():
    target = ClusterTarget(sb.PixelTarget(TOKENIZER), torch.randn(6, 48))
    other = ClusterTarget(sb.PixelTarget(TOKENIZER), torch.zeros(6, 48))
    other.load_state_dict(target.state_dict())
    assert torch.equal(other(pictures()), target(pictures()))


def test_a_codebook_of_another_width_is_refused():
    with pytest.raises(ValueError, match=r"centers of shape \(6, 3\) must be \[K, 48\]"):
        ClusterTarget(sb.PixelTarget(TOKENIZER), torch.zeros(6, 3))


@pytest.mark.parametrize("cell", [2, None])
def test_gradients_equal_their_twin(cell):
    side = 4 if cell is None else cell
    target = HOGTarget(TOKENIZER, bins=5, cell=cell)
    found = target(pictures())
    assert found.shape == (2, 6, target.dim)
    per = 4 // side
    for image, rows in zip(pictures(), found, strict=True):
        cells = histogram_of_gradients(image, side, 5)
        expected = [
            cells[y * per : (y + 1) * per, x * per : (x + 1) * per].flatten() for y in range(2) for x in range(3)
        ]
        torch.testing.assert_close(rows, torch.stack(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"bins": 0}, "bins=0 must be at least 1"), ({"cell": 3}, "cell=3 must divide the patch of 4x4 pixels")],
)
def test_wrong_gradients_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        HOGTarget(TOKENIZER, **options)
    with pytest.raises(ValueError, match="tokenizer must not crop"):
        HOGTarget(sb.PatchTokenizer(image_size=8, patch_size=4, crop=1))


@pytest.mark.parametrize("lowest", [None, 1, 3])
def test_frequencies_equal_their_twin(lowest):
    target = DCTTarget(TOKENIZER, lowest=lowest)
    found = target(pictures(1))[0]
    for patch, row in zip(cut_patches(pictures(1), (4, 4))[0], found, strict=True):
        expected = [
            cosine_transform(channel)[v, u]
            for channel in patch
            for v in range(4)
            for u in range(4)
            if lowest is None or v + u < lowest
        ]
        torch.testing.assert_close(row, torch.stack(expected).float(), rtol=1e-4, atol=1e-5)


def test_all_frequencies_are_the_picture_and_few_are_smooth():
    whole, few = DCTTarget(TOKENIZER), DCTTarget(TOKENIZER, lowest=1)
    torch.testing.assert_close(whole.to_pixels(whole(pictures()), pictures()), pictures())
    smooth = cut_patches(few.to_pixels(few(pictures()), pictures()), (4, 4))
    mean = cut_patches(pictures(), (4, 4)).mean((-1, -2), keepdim=True)
    torch.testing.assert_close(smooth, mean.expand_as(smooth))
    with pytest.raises(ValueError, match="lowest=0 must be at least 1"):
        DCTTarget(TOKENIZER, lowest=0)


def test_builders_take_a_loss():
    encoder = sb.encoders.timm_vit(image_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2)
    tokenizer = sb.PatchTokenizer(image_size=16, patch_size=4)
    decoder = sb.MaskTokenDecoder(grid=encoder.grid, dim=16, depth=1, num_heads=2)
    for build, own, more in ((sb.simmim, sb.predicted_l1, {}), (sb.mae, sb.predicted_mse, {"decoder": decoder})):
        assert build(encoder=encoder, tokenizer=tokenizer, **more).loss is own
        objective = build(encoder=encoder, tokenizer=tokenizer, loss=sb.predicted_cosine, **more)
        out = objective(images(2))
        torch.testing.assert_close(out.loss, sb.predicted_cosine(out.predictions, out.targets, out.is_target))
