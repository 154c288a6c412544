"""One objective equals the three that it replaces, bit for bit."""

import pytest
import torch

import ssl_blocks as sb
from ssl_blocks.objectives import SegmentPrediction
from ssl_blocks.parts.mask import FullMask
from ssl_blocks.parts.read import DecoderReader, QueryReader

TOKENIZER = sb.PatchTokenizer(image_size=32, patch_size=4)
PARTITIONERS = {
    "squares": sb.SquarePartitioner(sides=(2, 4)),
    "blobs": sb.BlobPartitioner(counts=(7, 3)),
    "tokens": sb.TokenPartitioner(),
}


def encoder():
    torch.manual_seed(0)
    return sb.encoders.timm_vit(image_size=32, patch_size=4, embed_dim=32, depth=3, num_heads=2, class_token=True)


def old(kind, partitioner, first):
    vit = encoder()
    size = {"grid": vit.grid, "dim": 32, "depth": 2, "num_heads": 2}
    target = sb.PixelTarget(TOKENIZER, normalize=True)
    common = {"encoder": vit, "tokenizer": TOKENIZER, "target": target}
    if kind == "mae":
        return sb.MaskedAutoencoding(**common, decoder=sb.MaskTokenDecoder(**size))
    common |= {"partitioner": partitioner, "predict_first": first}
    if kind == "two-stream":
        return sb.TwoStreamAutoregression(**common)
    if kind == "saim":
        router, decoder = sb.MatchedRouter(encoder_depth=3, decoder_depth=3), sb.QueryStreamDecoder.sharing(vit, depth=3)
    else:
        router, decoder = sb.LearnedSkipRouter(encoder_depth=3, decoder_depth=2), sb.SegmentDecoder(**size)
    return sb.SegmentAutoregression(**common, router=router, decoder=decoder)


def new(kind, partitioner, first):
    vit = encoder()
    size = {"grid": vit.grid, "dim": 32, "depth": 2, "num_heads": 2}
    common = {"encoder": vit, "tokenizer": TOKENIZER, "target": sb.PixelTarget(TOKENIZER, normalize=True)}
    if kind == "mae":
        return sb.objectives.mae(**common, decoder=sb.MaskTokenDecoder(**size))
    common |= {"partitioner": partitioner, "predict_first": first}
    if kind == "two-stream":
        return SegmentPrediction(**common, reader=QueryReader(32))
    if kind == "saim":
        router, decoder = sb.MatchedRouter(encoder_depth=3, decoder_depth=3), sb.QueryStreamDecoder.sharing(vit, depth=3)
    else:
        router, decoder = sb.LearnedSkipRouter(encoder_depth=3, decoder_depth=2), sb.SegmentDecoder(**size)
    return SegmentPrediction(**common, reader=DecoderReader(router, decoder))


CASES = [(k, p, f) for k in ("randsac", "saim", "two-stream") for p in PARTITIONERS for f in (False, True)]


@pytest.mark.parametrize(("kind", "segments", "first"), [*CASES, ("mae", "squares", False)])
def test_old_equals_new(kind, segments, first):
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    found = []
    for build in (old, new):
        objective = build(kind, PARTITIONERS[segments], first)
        draw = objective.draw(images, generator=torch.Generator().manual_seed(1))
        out = objective(images, draw)
        out.loss.backward()
        state = {k.removeprefix("reader."): v for k, v in objective.state_dict().items()}
        gradients = {k.removeprefix("reader."): p.grad for k, p in objective.named_parameters()}
        found.append((out, state, gradients))
    (a, states, gradients), (b, others, theirs) = found
    for name in ("loss", "predictions", "targets", "index", "step", "is_target"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert {k: v.shape for k, v in states.items()} == {k: v.shape for k, v in others.items()}
    assert all(torch.equal(states[k], others[k]) for k in states)
    for k in gradients:
        assert (gradients[k] is None) == (theirs[k] is None)
        assert gradients[k] is None or torch.equal(gradients[k], theirs[k]), k
