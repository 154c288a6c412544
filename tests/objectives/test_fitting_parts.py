"""Parts that were built for another image, grid or encoder are refused when an objective is put together."""

import pytest
import torch
from torch import nn

import ssl_blocks as sb

TOKENIZER = sb.PatchTokenizer(image_size=16, patch_size=4)
OTHER = sb.Grid(2, 8)  # as many tokens as the encoder's 4x4


def encoder(**options):
    torch.manual_seed(0)
    sizes = {"image_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return sb.encoders.timm_vit(**{**sizes, **options})


def decoder(**options):
    return sb.SegmentDecoder(**{"grid": sb.Grid(4, 4), "dim": 16, "depth": 1, "num_heads": 2, **options})


def build(**parts):
    own = parts.pop("encoder", None) or encoder()
    made = {
        "encoder": own,
        "tokenizer": TOKENIZER,
        "partitioner": sb.SquarePartitioner(sides=(2,)),
        "reader": sb.DecoderReader(sb.LastLayerRouter(decoder_depth=1), decoder()),
        "target": sb.PixelTarget(TOKENIZER),
    }
    return sb.SegmentPrediction(**{**made, **parts})


def read_by(part, router=None):
    return sb.DecoderReader(sb.LastLayerRouter(decoder_depth=1) if router is None else router, part)


class Windows:
    """A user's own partitioner, which owns a grid."""

    def __init__(self, grid):
        self.grid = grid

    def __call__(self, images, grid, *, generator=None):
        return sb.SquarePartitioner(sides=(2,))(images, grid, generator=generator)


WRONG = {
    "decoder of another grid": (
        lambda: {"reader": read_by(decoder(grid=OTHER))},
        "SegmentDecoder has grid 2x8, but the encoder was built for 4x4",
    ),
    "mask-token decoder of another grid": (
        lambda: {"reader": read_by(sb.MaskTokenDecoder(grid=OTHER, dim=16, depth=1, num_heads=2))},
        "MaskTokenDecoder has grid 2x8",
    ),
    "query stream of another grid": (
        lambda: {
            "reader": read_by(sb.QueryStreamDecoder(grid=OTHER, dim=16, depth=1, num_heads=2, norm=nn.LayerNorm(16)))
        },
        "QueryStreamDecoder has grid 2x8",
    ),
    "positions of another grid": (
        lambda: {"reader": read_by(decoder(positions=sb.parts.PositionTable(torch.randn(64, 16))))},
        "PositionTable has num_positions 64, but the encoder was built for 16",
    ),
    "target of another grid": (
        lambda: {"target": sb.PixelTarget(sb.PatchTokenizer(image_size=(8, 32), patch_size=4))},
        "PatchTokenizer has grid 2x8",
    ),
    "target of larger images": (
        lambda: {"target": sb.PixelTarget(sb.PatchTokenizer(image_size=32, patch_size=8))},
        r"PatchTokenizer has image_size \(32, 32\), but the tokenizer was built for \(16, 16\)",
    ),
    "teacher of another grid": (
        lambda: {"target": sb.EncoderTarget(encoder(image_size=(8, 32)))},
        "TimmViT has grid 2x8, but the encoder was built for 4x4",
    ),
    "partitioner of another grid": (lambda: {"partitioner": Windows(OTHER)}, "Windows has grid 2x8"),
    "serializer of another grid": (lambda: {"serializer": Windows(OTHER)}, "Windows has grid 2x8"),
    "decoder of wider memories": (
        lambda: {"reader": read_by(decoder(memory_dim=32))},
        "SegmentDecoder has memory_dim 32, but the encoder was built for 16",
    ),
    "decoder that takes its own width": (lambda: {"reader": read_by(decoder(dim=32))}, "has memory_dim 32"),
    "queries of another width": (
        lambda: {"reader": sb.QueryReader(32), "mask": sb.FullMask(feedback=True)},
        "QueryReader has memory_dim 32",
    ),
    "outputs of another width": (
        lambda: {"reader": sb.parts.NextReader(32, num_tokens=16)},
        "NextReader has memory_dim 32",
    ),
    "outputs of another length": (
        lambda: {"reader": sb.parts.NextReader(16, num_tokens=64)},
        "NextReader has num_tokens 64, but the encoder was built for 16",
    ),
    "router of another width": (
        lambda: {"reader": read_by(decoder(), sb.parts.WeightedSkipRouter(encoder_depth=2, decoder_depth=1, dim=8))},
        "WeightedSkipRouter has memory_dim 8",
    ),
    "tokenizer of another grid": (
        lambda: {"tokenizer": sb.PatchTokenizer(image_size=(8, 32), patch_size=4)},
        "tokenizer has grid 2x8",
    ),
    "tokenizer of other patches": (
        lambda: {"tokenizer": sb.PatchTokenizer(image_size=8, patch_size=2)},
        r"tokenizer has patch \(2, 2\)",
    ),
    "head of another width": (
        lambda: {"head": nn.Linear(8, 48)},
        "head leads from 8 to 48 values, but it gets 16 and the target PixelTarget has 48",
    ),
    "head to another target": (lambda: {"head": nn.Linear(16, 12)}, "head leads from 16 to 12 values"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_part_of_another_grid_or_width_is_refused(name):
    parts, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        build(**parts())


FITTING = {
    "all as it is": dict,
    "a target of whole cells under a crop": lambda: {
        "encoder": encoder(image_size=8, patch_size=2),
        "tokenizer": sb.PatchTokenizer(image_size=16, patch_size=4, crop=2),
    },
    "a narrow decoder": lambda: {"reader": read_by(decoder(dim=8, memory_dim=16))},
    "positions of the encoder": lambda: {
        "encoder": (own := encoder(positions="learned")),
        "reader": read_by(decoder(positions=sb.parts.PositionTable(own.module.pos_embed))),
    },
    "a head of one's own": lambda: {"head": nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 48))},
    "a wider teacher": lambda: {"target": sb.EncoderTarget(encoder(embed_dim=32))},
    "a moving average": lambda: {
        "encoder": (own := encoder()),
        "target": sb.EncoderTarget(sb.MovingAverage(own, momentum=0.9)),
    },
    "a partitioner of this grid": lambda: {"partitioner": Windows(sb.Grid(4, 4))},
}


@pytest.mark.parametrize("name", FITTING)
def test_what_fits_is_put_together(name):
    assert torch.isfinite(build(**FITTING[name]())(torch.rand(2, 3, 16, 16)).loss)


def test_other_objectives_ask_their_parts_as_well():
    sampler = sb.parts.RectangleSampler(count=2, size=(1, 2))
    with pytest.raises(ValueError, match="MaskTokenDecoder has grid 2x8"):
        sb.objectives.BlockPrediction(
            encoder=encoder(),
            tokenizer=TOKENIZER,
            sampler=sampler,
            decoder=sb.MaskTokenDecoder(grid=OTHER, dim=16, depth=1, num_heads=2),
            target=sb.PixelTarget(TOKENIZER),
        )
    with pytest.raises(ValueError, match="head leads from 16 to 4 values"):
        sb.PatchPuzzle(encoder=encoder(positions="none"), tokenizer=TOKENIZER, head=nn.Linear(16, 4))
