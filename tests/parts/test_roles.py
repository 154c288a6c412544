"""Every part of the library keeps what its role promises: one list a role, and no part is left out."""

import importlib
import inspect
import pkgutil
from functools import cache, partial

import pytest
import torch
from torch import nn

import ssl_blocks as sb
from ssl_blocks import objectives, parts
from ssl_blocks.testing import (
    check_loss,
    check_mask_builder,
    check_objective,
    check_partitioner,
    check_reader,
    check_serializer,
    check_target,
)
from tests.recipes import images

GRID = sb.Grid(4, 4)
TOKENIZER = sb.PatchTokenizer(image_size=8, patch_size=2)
SQUARES = sb.SquarePartitioner(sides=(2,))


def vit(**options):
    torch.manual_seed(0)
    return sb.encoders.timm_vit(image_size=8, patch_size=2, **{"embed_dim": 16, "depth": 2, "num_heads": 2, **options})


shallow = partial(vit, depth=1)


def decoder(kind=sb.SegmentDecoder, depth=1, **options):
    return kind(**{"grid": GRID, "dim": 16, "depth": depth, "num_heads": 2, **options})


def queries(encoder):
    return sb.QueryStreamDecoder.sharing(encoder, depth=encoder.depth)


PARTITIONERS = {
    "tokens": sb.TokenPartitioner(),
    "squares": sb.SquarePartitioner(sides=(1, 2, 4)),
    "blobs": sb.BlobPartitioner(counts=(7, 3)),
    "subset": sb.SubsetPartitioner(hidden=0.75),
    "subsets of squares": sb.SubsetPartitioner(hidden=(0.3, 0.3), side=2),
    "blocks": sb.BlockSubsetPartitioner(hidden=0.5),
    "grid": sb.GridSubsetPartitioner(period=2),
    "superpixels": sb.parts.SuperpixelPartitioner(shape=2),
    "shuffled": sb.ShuffledPartitioner(base=sb.BlobPartitioner(counts=(5, 2))),
    "tubes": sb.TubePartitioner(base=sb.SubsetPartitioner(hidden=0.75, side=2)),
}
SERIALIZERS = {"ordered": sb.OrderedSerializer(), "random": sb.RandomSerializer()}
MASKS = {
    "causal": sb.SegmentCausalMask(),
    "full": sb.FullMask(),
    "full with feedback": sb.FullMask(feedback=True),
    "prefix of one step": sb.PrefixCausalMask(num_steps=1),
    "prefix": sb.PrefixCausalMask(num_steps=2),
}
LOSSES = {
    name: getattr(sb, name)
    for name in ("predicted_mse", "predicted_l1", "predicted_smooth_l1", "predicted_cosine", "predicted_cross_entropy")
}


@cache
def readers():
    """By name: reader, encoder, and what else it fits."""
    plain, prefixed = vit(), vit(class_token=True, reg_tokens=1)
    skips = sb.LearnedSkipRouter(encoder_depth=2, decoder_depth=1)
    last, halves = sb.LastLayerRouter(decoder_depth=1), sb.SubsetPartitioner(hidden=0.5)
    matched = sb.MatchedRouter(encoder_depth=2, decoder_depth=2)
    return {
        "skips": (sb.DecoderReader(skips, decoder()), plain, {}),
        "skips, prefix": (sb.DecoderReader(skips, decoder(positions="learned")), prefixed, {}),
        "skips, blobs": (
            sb.DecoderReader(skips, decoder()),
            plain,
            {"partitioner": sb.BlobPartitioner(counts=(5,))},
        ),
        "plain": (sb.DecoderReader(last, decoder()), plain, {"mask": sb.PrefixCausalMask(num_steps=2)}),
        "masked": (
            sb.DecoderReader(last, decoder(sb.MaskTokenDecoder)),
            prefixed,
            {"mask": sb.FullMask(), "partitioner": halves},
        ),
        "query stream": (sb.DecoderReader(matched, queries(prefixed)), prefixed, {}),
        "query stream of its own": (
            sb.DecoderReader(matched, decoder(sb.QueryStreamDecoder, depth=2, norm=plain.norm)),
            plain,
            {},
        ),
        "two streams": (sb.QueryReader(16), prefixed, {}),
        "lonely queries": (
            sb.DecoderReader(
                sb.parts.WeightedSkipRouter(encoder_depth=2, decoder_depth=1, dim=16),
                decoder(self_attention=False, mask_token=True),
            ),
            prefixed,
            {"mask": sb.FullMask(), "partitioner": halves},
        ),
        "next token": (
            sb.parts.NextReader(16, num_tokens=16),
            prefixed,
            {"partitioner": sb.TokenPartitioner(), "in_order": True},
        ),
        "next square": (
            sb.parts.NextReader(16, num_tokens=16, step=4),
            plain,
            {"partitioner": SQUARES, "in_order": True},
        ),
        "mask tokens": (sb.QueryReader(16), plain, {"mask": sb.FullMask(feedback=True), "partitioner": halves}),
    }


@cache
def targets():
    teacher = partial(sb.MovingAverage, momentum=0.9)
    return {
        "pixels": sb.PixelTarget(TOKENIZER),
        "normalised, blurred": sb.PixelTarget(TOKENIZER, normalize=True, blur=(3, 1.0)),
        "positions": sb.PositionTarget(TOKENIZER),
        "teacher": sb.EncoderTarget(teacher(vit(class_token=True, proj_drop_rate=0.5)), layers=2, norm="token"),
        "frozen": sb.EncoderTarget(vit(), norm=None),
        "clusters": sb.parts.ClusterTarget(sb.PixelTarget(TOKENIZER), torch.randn(5, 12)),
        "gradients": sb.parts.HOGTarget(TOKENIZER, bins=4, cell=1),
        "frequencies": sb.parts.DCTTarget(TOKENIZER, lowest=2),
    }


def puzzle():
    return sb.PatchPuzzle(encoder=shallow(positions="none"), tokenizer=TOKENIZER, patch_dropout=0.3)


def distillation(**options):
    head = partial(sb.dino_head, hidden_dim=16, bottleneck_dim=8)
    encoder = sb.encoders.TokenRegions(shallow(class_token=True))
    return sb.ViewRegionDistillation(encoder=encoder, out_dim=12, head=head, **options)


def both():
    encoder = shallow()
    common = {"encoder": encoder, "tokenizer": TOKENIZER}
    return sb.WeightedSum({
        "mae": sb.mae(**common, decoder=decoder(sb.MaskTokenDecoder)),
        "randsac": sb.randsac(**common, partitioner=SQUARES, decoder=decoder()),
    })  # fmt: skip


def assembled(build, encoder=None, **parts):
    return build(encoder=shallow() if encoder is None else encoder, tokenizer=TOKENIZER, **parts)


def data2vec():
    encoder = vit()
    target = sb.EncoderTarget(sb.MovingAverage(encoder, momentum=sb.parts.cosine_momentum(0.9)), layers=2, norm="token")
    return assembled(sb.simmim, encoder, target=target)


def aim():
    return sb.SegmentPrediction(
        encoder=shallow(),
        tokenizer=TOKENIZER,
        partitioner=SQUARES,
        reader=sb.DecoderReader(sb.LastLayerRouter(decoder_depth=1), decoder()),
        target=sb.PixelTarget(TOKENIZER),
        serializer=sb.OrderedSerializer(),
        mask=sb.PrefixCausalMask(num_steps=2),
        loss=sb.predicted_smooth_l1,
    )


def partial_prediction():
    return sb.SegmentPrediction(
        encoder=shallow(),
        tokenizer=TOKENIZER,
        partitioner=sb.SubsetPartitioner(hidden=(0.25, 0.5)),
        serializer=sb.OrderedSerializer(),
        mask=sb.FullMask(),
        reader=sb.DecoderReader(sb.LastLayerRouter(decoder_depth=1), decoder()),
        target=sb.PixelTarget(TOKENIZER),
        num_predicted=1,
    )


def blocks():
    return assembled(
        sb.objectives.BlockPrediction,
        sampler=sb.parts.RectangleSampler(count=3, size=(2, 1)),
        decoder=decoder(sb.MaskTokenDecoder),
        target=sb.PixelTarget(TOKENIZER),
    )


def joint():
    encoder = sb.encoders.TokenRegions(shallow(class_token=True))
    return sb.objectives.JointEmbedding(encoder=encoder, head=nn.Linear(16, 8), loss=sb.parts.nt_xent)


def shared():
    views = sb.objectives.MaskedViews(shallow(class_token=True), sb.SubsetPartitioner(hidden=0.5), share=1.0)
    parts = {
        "views": sb.objectives.DistilledViews(views, nn.Linear(16, 8), 8),
        "tokens": sb.objectives.DistilledTokens(views, nn.Linear(16, 8), 8),
        "spread": sb.objectives.SpreadViews(views),
    }
    return sb.WeightedSum(parts, shared=views)


def saim():
    encoder = shallow(class_token=True)
    return assembled(sb.saim, encoder, decoder=queries(encoder))


VIEWS = sb.Views(tuple(images(2, 8, seed=seed) for seed in (1, 2, 3)), num_global=2)
OBJECTIVES = {
    "randsac": lambda: assembled(sb.randsac, partitioner=SQUARES, decoder=decoder()),
    "randsac, blobs": lambda: assembled(
        sb.randsac,
        shallow(class_token=True),
        partitioner=sb.BlobPartitioner(counts=(5, 2)),
        decoder=decoder(),
        predict_first=True,
    ),
    "mae": lambda: assembled(sb.mae, decoder=decoder(sb.MaskTokenDecoder)),
    "saim": saim,
    "simmim": lambda: assembled(sb.simmim),
    "aim": aim,
    "data2vec": data2vec,
    "partial prediction": partial_prediction,
    "blocks": blocks,
    "joint embedding": joint,
    "shared pass": shared,
    "puzzle": puzzle,
    "dino": lambda: distillation(region_weight=0.0),
    "esvit": distillation,
    "esvit, apart": lambda: distillation(koleo_weight=0.5),
    "sum": both,
}


@pytest.mark.parametrize("name", PARTITIONERS)
@pytest.mark.parametrize("grid", [sb.Grid(4, 8), sb.Grid(64), sb.Grid(4, 4, 4)], ids=str)
def test_partitioners(name, grid):
    if (name == "tubes" and grid.ndim < 2) or (name == "superpixels" and grid.ndim != 2):
        with pytest.raises(ValueError, match=rf"grid .*{grid}|, got {grid}$"):
            PARTITIONERS[name](images(2, 8), grid)
        return
    report = check_partitioner(PARTITIONERS[name], grid=grid)
    is_random = name not in ("tokens", "squares", "grid", "superpixels")
    assert ("images in a batch" in report.not_applicable) == is_random


@pytest.mark.parametrize("name", SERIALIZERS)
def test_serializers(name):
    report = check_serializer(SERIALIZERS[name])
    assert ("images in a batch" in report.not_applicable) == (name == "random")


@pytest.mark.parametrize("name", MASKS)
def test_mask_builders(name):
    report = check_mask_builder(MASKS[name])
    assert set(report.not_applicable) == (set() if name == "causal" else {"predict first"})


@pytest.mark.parametrize("name", readers())
def test_readers(name):
    reader, encoder, options = readers()[name]
    report = check_reader(reader, encoder, **options)
    own = name != "query stream"  # it shares all its weights
    order = {"order of queries", "order of content", "positions of queries"}
    without = {"skips, blobs": {"windows"}, "masked": {"windows"}}.get(
        name, order if name.startswith("next") else set()
    )
    own = own and not name.startswith("next")
    assert set(report.not_applicable) == without | (set() if own else {"gradients"})


@pytest.mark.parametrize("name", targets())
def test_targets(name):
    report = check_target(targets()[name], images(3, 8), GRID)
    assert set(report.not_applicable) == (
        {"pictures"} if name in ("teacher", "frozen", "clusters", "gradients") else set()
    )


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name):
    assert not check_loss(LOSSES[name]).not_applicable


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives(name):
    objective = OBJECTIVES[name]()
    data = VIEWS if objective.takes_views else images(2, 8)
    whole = name in ("sum", "joint embedding", "shared pass", "esvit, apart")
    report = check_objective(objective, data, whole_batch=whole)
    assert ("count" in report.not_applicable) == whole


# No part is left out


def public(package):
    """Classes and functions that a package's modules define and do not hide."""
    for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if found.ispkg:
            continue
        for name, value in vars(importlib.import_module(found.name)).items():
            if getattr(value, "__module__", None) == found.name and not name.startswith("_"):
                yield name, value


def of_role(suffix):
    """Public classes of that ending that are no protocol."""
    return {
        value
        for name, value in public(parts)
        if inspect.isclass(value) and name.endswith(suffix) and not getattr(value, "_is_protocol", False)
    }


@pytest.mark.parametrize(
    ("suffix", "listed"),
    [
        ("Partitioner", PARTITIONERS.values()),
        ("Serializer", SERIALIZERS.values()),
        ("Mask", MASKS.values()),
        ("Reader", [reader for reader, *_ in readers().values()]),
        ("Target", targets().values()),
    ],
)
def test_every_part_is_listed(suffix, listed):
    found = of_role(suffix)
    assert len(found) > 1
    assert {type(part) for part in listed} == found


def test_every_part_of_a_role_has_its_ending():
    for module, suffix in (
        (parts.partition, "Partitioner"),
        (parts.serialize, "Serializer"),
        (parts.mask, "Mask"),
        (parts.read, "Reader"),
        (parts.target, "Target"),
    ):
        for name, value in vars(module).items():
            if (
                inspect.isclass(value)
                and value.__module__ == module.__name__
                and not getattr(value, "_is_protocol", False)
            ):
                assert name.endswith(suffix), (module.__name__, name)


def test_every_loss_and_objective_is_listed():
    losses = {name for name, value in vars(parts.loss).items() if inspect.isfunction(value) and name[0] != "_"}
    assert losses - {"runtime_checkable", "checked"} == set(LOSSES)
    found = {
        value
        for _, value in public(objectives)
        if inspect.isclass(value) and issubclass(value, sb.Objective) and not inspect.isabstract(value)
    }
    assert len(found) > 3
    built = [build() for build in OBJECTIVES.values()]
    inner = [part for one in built if isinstance(one, sb.WeightedSum) for part in one.parts.values()]
    assert {type(one) for one in [*built, *inner]} == found
    module = objectives.builders
    builders = {name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__}
    builders = {name for name in builders if not name.startswith("_")}
    assert len(builders) > 3
    assert builders <= set(OBJECTIVES)


def test_checks_leave_no_trace():
    objective, target = data2vec(), targets()["teacher"]
    models = nn.ModuleList([objective, target]).train()
    state = {key: value.clone() for key, value in models.state_dict().items()}
    modes, random = [part.training for part in models.modules()], torch.get_rng_state()
    reader, encoder, _ = readers()["two streams"]
    torch.set_rng_state(random)
    check_objective(objective, images(2, 8))
    check_target(target, images(2, 8), GRID)
    kept = {key: value.clone() for key, value in reader.state_dict().items()}
    check_reader(reader, encoder)
    check_partitioner(PARTITIONERS["blobs"])
    assert torch.equal(torch.get_rng_state(), random)
    assert [part.training for part in models.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in models.state_dict().items())
    assert all(torch.equal(value, kept[key]) for key, value in reader.state_dict().items())
    assert all(p.grad is None for p in models.parameters())
