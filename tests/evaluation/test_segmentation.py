"""The segmentation head."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_blocks import encoders
from ssl_blocks.evaluation import FeaturePyramid, SegmentationModel, UPerHead
from tests import reference


def make_maps(height: int = 12, width: int = 8) -> dict[str, Tensor]:
    """Four maps, each half as large as the one before, the last sides rounded up."""
    generator = torch.Generator().manual_seed(0)
    sizes = enumerate((-(-height // side), -(-width // side)) for side in (1, 2, 4, 8))
    return {str(i): torch.randn(2, 8, *size, generator=generator) for i, size in sizes}


def make_head(width: int | None = None) -> UPerHead:
    torch.manual_seed(0)
    return UPerHead(in_channels=8, num_classes=5, width=width)


def convolve(x: Tensor, part: nn.Module) -> Tensor:
    """Convolution, norm over the channels of each pixel, ReLU."""
    weight = part[0].weight
    x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
    centred = x - x.mean(1, keepdim=True)
    x = centred / (centred.square().mean(1, keepdim=True) + part[1].eps).sqrt()
    return (x * part[1].weight[:, None, None] + part[1].bias[:, None, None]).clamp(min=0)


def enlarge(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[2:], mode="bilinear")


@pytest.mark.parametrize("size", [(12, 8), (56, 72)])
def test_head_equals_upernet_written_out(size: tuple[int, int]) -> None:
    head, (a, b, c, d) = make_head(width=12), make_maps(*size).values()
    for parameter in head.parameters():  # norms start at 1 and 0, which would hide them
        nn.init.normal_(parameter, std=0.5)
    pools = [
        enlarge(convolve(reference.cell_means(d, bins), pool.project), d)
        for bins, pool in zip((1, 2, 3, 6), head.pools, strict=True)
    ]
    d = convolve(torch.cat([d, *pools], 1), head.coarsest)
    c = convolve(c, head.laterals[2]) + enlarge(d, c)
    b = convolve(b, head.laterals[1]) + enlarge(c, b)
    a = convolve(a, head.laterals[0]) + enlarge(b, a)
    smooth = [convolve(x, part) for x, part in zip((a, b, c), head.smooths, strict=True)]
    joined = convolve(torch.cat([enlarge(x, a) for x in (*smooth, d)], 1), head.fuse)
    logits = torch.einsum("bchw,kc->bkhw", joined, head.classify.weight[:, :, 0, 0])
    expected = logits + head.classify.bias[:, None, None]
    torch.testing.assert_close(head(make_maps(*size)), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("width", [None, 12])
def test_logits_have_the_size_of_the_finest_map(width: int | None) -> None:
    assert make_head(width)(make_maps()).shape == (2, 5, 12, 8)


def test_images_of_a_batch_do_not_touch_each_other() -> None:
    head, maps = make_head().train(), make_maps()
    alone = head({name: level[1:] for name, level in maps.items()})
    torch.testing.assert_close(head(maps)[1:], alone)


@pytest.mark.parametrize("level", ["0", "1", "2", "3"])
def test_every_map_matters(level: str) -> None:
    head, maps = make_head(), make_maps()
    before = head(maps)
    changed = maps | {level: maps[level] + torch.randn_like(maps[level])}
    assert (head(changed) - before).abs().max() > 1e-3


def test_every_parameter_is_trained() -> None:
    head = make_head()
    head(make_maps()).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in head.parameters())


def test_pooling_lets_far_pixels_know_of_each_other() -> None:
    """A corner of the coarsest map reaches the opposite corner, which 3x3 convolutions alone do not at this size."""
    head = UPerHead(in_channels=8, num_classes=2)
    maps = {str(i): torch.zeros(1, 8, 64 >> i, 64 >> i) for i in range(4)}
    last = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logits = head(maps | {"3": last})
    (gradient,) = torch.autograd.grad(logits[0, :, 0, 0].sum(), last)
    assert gradient[0, :, -1, -1].abs().sum() > 0


def test_model_answers_in_the_size_of_the_images() -> None:
    encoder = encoders.timm_vit(image_size=(24, 16), patch_size=8, depth=4, embed_dim=16, num_heads=2)
    model = SegmentationModel(FeaturePyramid(encoder, out_channels=8), make_head())
    assert model(torch.zeros(1, 3, 24, 16)).shape == (1, 5, 24, 16)
    assert model.num_classes == 5
    assert "pyramid.encoder.module.pos_embed" in model.no_weight_decay()


def test_compiles_in_one_graph(bare: Callable[[str], str]) -> None:
    """In a process of its own, where nothing checks shapes."""
    bare("""
import torch
from ssl_blocks import encoders
from ssl_blocks.evaluation import FeaturePyramid, SegmentationModel, UPerHead
encoder = encoders.timm_vit(image_size=16, patch_size=4, depth=4, embed_dim=16, num_heads=2)
head, images = UPerHead(in_channels=8, num_classes=3), torch.randn(2, 3, 16, 16)
for freeze in (False, True):
    model = SegmentationModel(FeaturePyramid(encoder, out_channels=8, freeze=freeze), head)
    compiled = torch.compile(model, backend="eager", fullgraph=True)(images)
    torch.testing.assert_close(compiled, model(images))
    compiled.square().sum().backward()
""")


def test_wrong_input() -> None:
    with pytest.raises(ValueError, match=r"num_classes=256 must be within 1\.\.255: 255 marks ignored pixels"):
        UPerHead(in_channels=8, num_classes=256)
    with pytest.raises(ValueError, match="width=0 must be at least 1"):
        UPerHead(in_channels=8, num_classes=2, width=0)
    maps = make_maps()
    del maps["3"]
    with pytest.raises(ValueError, match=r"maps=\['0', '1', '2'\] must be 4, as the head was built for"):
        make_head()(maps)
