"""Calls of public names that work, by name: what a test of wrong arguments starts from."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

import ssl_blocks as sb
from ssl_blocks import evaluation, parts, visualize
from ssl_blocks.evaluation import Extractor, Labelled

Call = tuple[Callable[..., Any], dict[str, Any]]
GRID = sb.Grid(2, 2)
IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
EIGHT_BITS = (IMAGES * 255).to(torch.uint8)
FEATURES, LABELS = torch.eye(4).repeat(4, 1) + 0.1 * torch.rand(16, 4), torch.arange(4).repeat(4)
MEAN = STD = (0.5, 0.5, 0.5)
SIZE = {"depth": 1, "embed_dim": 16, "num_heads": 2}


@cache
def encoder(class_token: bool = False, positions: str = "sincos") -> Any:
    return sb.encoders.timm_vit(image_size=8, patch_size=4, class_token=class_token, positions=positions, **SIZE)


@cache
def tokenizer() -> Any:
    return sb.PatchTokenizer(image_size=8, patch_size=4)


@cache
def decoder() -> Any:
    return sb.SegmentDecoder(grid=GRID, dim=16, depth=1, num_heads=2)


@cache
def objective(name: str) -> Any:
    function, kwargs = BUILDERS[name]()
    return function(**kwargs)


def draw() -> Any:
    return sb.RandomSerializer()(sb.TokenPartitioner()(IMAGES, GRID))


def masks() -> Any:
    return sb.SegmentCausalMask()(draw(), slice(0, 3), slice(1, 4), 0)


def memories() -> dict[str, Any]:
    index = torch.arange(3).expand(2, -1)
    return {"memories": (torch.rand(2, 3, 16),), "masks": masks(), "query_index": index + 1, "memory_index": index}


def rows() -> dict[str, Any]:
    shape = (2, 3, 5)
    return {
        "predictions": torch.rand(shape),
        "targets": torch.rand(shape),
        "is_target": torch.ones(2, 3, dtype=torch.bool),
    }


def split() -> dict[str, Any]:
    return {"train": FEATURES, "train_labels": LABELS, "test": FEATURES, "test_labels": LABELS}


@cache
def image_split() -> Any:
    return sb.data.load("digits", max_train=20, max_test=10).train


@cache
def extractor() -> Any:
    return Extractor(encoder(), MEAN, STD)


@cache
def views() -> Any:
    return sb.Views((IMAGES, IMAGES), num_global=2)


@cache
def masked_views() -> Any:
    return sb.objectives.MaskedViews(encoder(class_token=True), sb.SubsetPartitioner(hidden=0.5))


def head(dim: int = 16, out_dim: int = 8) -> Any:
    return sb.dino_head(dim, out_dim, hidden_dim=8, bottleneck_dim=4)


def drawn(partitioner: Any) -> Call:
    return partitioner, {"images": IMAGES, "grid": GRID}


def common(**more: Any) -> dict[str, Any]:
    return {"encoder": encoder(), "tokenizer": tokenizer(), **more}


BUILDERS: dict[str, Callable[[], Call]] = {
    "mae": lambda: (
        sb.mae,
        common(encoder=encoder(True), decoder=sb.MaskTokenDecoder(grid=GRID, dim=16, depth=1, num_heads=2)),
    ),
    "randsac": lambda: (sb.randsac, common(partitioner=sb.TokenPartitioner(), decoder=decoder())),
    "saim": lambda: (
        sb.saim,
        common(encoder=encoder(True), decoder=sb.QueryStreamDecoder.sharing(encoder(True), depth=1)),
    ),
    "simmim": lambda: (sb.simmim, common(partitioner=sb.SubsetPartitioner(hidden=0.5))),
    "SegmentPrediction": lambda: (
        sb.SegmentPrediction,
        common(
            partitioner=sb.TokenPartitioner(),
            reader=sb.DecoderReader(sb.LastLayerRouter(decoder_depth=1), decoder()),
            target=sb.PixelTarget(tokenizer()),
            predict_first=False,
            num_predicted=1,
        ),
    ),
    "BlockPrediction": lambda: (
        sb.objectives.BlockPrediction,
        common(
            sampler=parts.RectangleSampler(count=1, size=(1, 1)),
            decoder=decoder(),
            target=sb.PixelTarget(tokenizer()),
        ),
    ),
    "PatchPuzzle": lambda: (
        sb.PatchPuzzle,
        common(encoder=encoder(positions="none"), patch_dropout=0.1),
    ),
    "ViewRegionDistillation": lambda: (
        sb.ViewRegionDistillation,
        {
            "encoder": sb.encoders.TokenRegions(encoder(True)),
            "out_dim": 8,
            "head": partial(sb.dino_head, hidden_dim=8, bottleneck_dim=4),
            "region_weight": 0.5,
            "student_temperature": 0.1,
            "schedule": sb.TeacherSchedule(),
            "center_momentum": 0.9,
            "freeze_epochs": 1,
        },
    ),
    "JointEmbedding": lambda: (
        sb.objectives.JointEmbedding,
        {"encoder": sb.encoders.TokenRegions(encoder()), "loss": parts.nt_xent, "head": torch.nn.Identity()},
    ),
    "WeightedSum": lambda: (
        sb.WeightedSum,
        {"objectives": {"one": objective("randsac")}, "weights": {"one": 1.0}, "exports": "one"},
    ),
}

CALLS: dict[str, Callable[[], Call]] = {
    "Grid.coordinates": lambda: (GRID.coordinates, {"device": "cpu"}),
    "gather_tokens": lambda: (sb.values.gather_tokens, {"x": torch.rand(2, 4, 3), "index": torch.zeros(2, 1).long()}),
    "Segments": lambda: (
        sb.Segments,
        {"levels": (torch.zeros(2, 4).long(),), "counts": (1,), "step_sizes": (4,)},
    ),
    "Serialization": lambda: (
        sb.Serialization,
        {"order": torch.arange(4)[None], "step": torch.arange(4)[None], "step_sizes": (1, 1, 1, 1)},
    ),
    "Serialization.take": lambda: (draw().take, {"x": torch.rand(2, 4, 3), "window": slice(0, 2)}),
    "Serialization.put": lambda: (draw().put, {"x": torch.rand(2, 2, 3), "window": slice(0, 2)}),
    "Serialization.windows": lambda: (draw().windows, {"predict_first": True}),
    "AttentionMasks": lambda: (
        sb.AttentionMasks,
        {
            name: torch.ones(1, 1, q, k, dtype=torch.bool)
            for name, q, k in (("source", 3, 3), ("target", 2, 2), ("memory", 2, 3), ("feedback", 3, 2))
        },
    ),
    "Encoded": lambda: (
        sb.Encoded,
        {"input": torch.rand(2, 4, 8), "hidden": (torch.rand(2, 4, 8),), "final": torch.rand(2, 4, 8)},
    ),
    "Regions": lambda: (
        sb.values.Regions,
        {"map": torch.rand(2, 4, 8), "pooled": torch.rand(2, 8), "grid": GRID},
    ),
    "Views": lambda: (sb.Views, {"images": (IMAGES, IMAGES), "num_global": 1}),
    "Progress": lambda: (sb.Progress, {"step": 0, "epoch": 0, "num_steps": 10, "steps_per_epoch": 5}),
    # parts
    "PatchTokenizer": lambda: (
        sb.PatchTokenizer,
        {"image_size": 8, "patch_size": 4, "channels": 3, "crop": 0},
    ),
    "PatchTokenizer.from_grid": lambda: (
        sb.PatchTokenizer.from_grid,
        {"image_size": 8, "grid": 2, "channels": 3, "crop": 0},
    ),
    "PatchTokenizer()": lambda: (tokenizer(), {"images": IMAGES}),
    "PatchTokenizer.untokenize": lambda: (tokenizer().untokenize, {"patches": torch.rand(2, 4, 3, 4, 4)}),
    "ChannelTokenizer": lambda: (
        sb.ChannelTokenizer,
        {"image_size": 8, "patch_size": 4, "channels": 4, "depth": 2},
    ),
    "SquarePartitioner": lambda: (sb.SquarePartitioner, {"sides": (1, 2)}),
    "BlobPartitioner": lambda: (
        sb.BlobPartitioner,
        {"counts": (7, 3), "mean_range": (-2.0, 2.0), "std_range": (0.5, 1.5)},
    ),
    "SubsetPartitioner": lambda: (sb.SubsetPartitioner, {"hidden": 0.5, "side": 1}),
    "BlockSubsetPartitioner": lambda: (
        sb.BlockSubsetPartitioner,
        {"hidden": 0.5, "area": (0.1, 0.3), "aspect": 0.3},
    ),
    "GridSubsetPartitioner": lambda: (sb.GridSubsetPartitioner, {"period": 2}),
    "ShuffledPartitioner": lambda: (sb.ShuffledPartitioner, {"base": sb.TokenPartitioner()}),
    "TubePartitioner": lambda: (sb.TubePartitioner, {"base": sb.TokenPartitioner()}),
    "SuperpixelPartitioner": lambda: (
        parts.SuperpixelPartitioner,
        {"shape": 2, "compactness": 0.5, "iterations": 2},
    ),
    "TokenPartitioner()": lambda: drawn(sb.TokenPartitioner()),
    "SquarePartitioner()": lambda: drawn(sb.SquarePartitioner(sides=(1,))),
    "BlobPartitioner()": lambda: drawn(sb.BlobPartitioner(counts=(3,))),
    "SubsetPartitioner()": lambda: drawn(sb.SubsetPartitioner(hidden=0.5)),
    "BlockSubsetPartitioner()": lambda: drawn(sb.BlockSubsetPartitioner(hidden=0.5)),
    "GridSubsetPartitioner()": lambda: drawn(sb.GridSubsetPartitioner(period=2)),
    "ShuffledPartitioner()": lambda: drawn(sb.ShuffledPartitioner(base=sb.TokenPartitioner())),
    "slic": lambda: (parts.slic, {"images": IMAGES, "shape": (2, 2), "compactness": 0.5, "iterations": 1}),
    "RectangleSampler": lambda: (parts.RectangleSampler, {"count": 1, "size": (1, 1)}),
    "RectangleSampler()": lambda: drawn(parts.RectangleSampler(count=1, size=(1, 1))),
    "OrderedSerializer()": lambda: (
        sb.OrderedSerializer(),
        {"segments": sb.TokenPartitioner()(IMAGES, GRID)},
    ),
    "RandomSerializer()": lambda: (
        sb.RandomSerializer(),
        {"segments": sb.TokenPartitioner()(IMAGES, GRID), "generator": torch.Generator()},
    ),
    "SegmentCausalMask()": lambda: (
        sb.SegmentCausalMask(),
        {"serialization": draw(), "encoded": slice(0, 3), "predicted": slice(1, 4), "num_prefix": 0},
    ),
    "PrefixCausalMask": lambda: (sb.PrefixCausalMask, {"num_steps": 1}),
    "FullMask": lambda: (sb.FullMask, {"feedback": True}),
    "LearnedSkipRouter": lambda: (sb.LearnedSkipRouter, {"encoder_depth": 1, "decoder_depth": 1}),
    "LearnedSkipRouter()": lambda: (
        sb.LearnedSkipRouter(encoder_depth=1, decoder_depth=1),
        {"hidden": (torch.rand(2, 3, 16),), "norm": torch.nn.Identity()},
    ),
    "WeightedSkipRouter": lambda: (
        parts.WeightedSkipRouter,
        {"encoder_depth": 1, "decoder_depth": 1, "dim": 16, "eps": 1e-6},
    ),
    "LastLayerRouter": lambda: (sb.LastLayerRouter, {"decoder_depth": 1}),
    "MatchedRouter": lambda: (sb.MatchedRouter, {"encoder_depth": 2, "decoder_depth": 1}),
    "SegmentDecoder": lambda: (
        sb.SegmentDecoder,
        {
            "grid": GRID,
            "dim": 16,
            "depth": 1,
            "num_heads": 2,
            "memory_dim": 8,
            "mlp_ratio": 2.0,
            "positions": "sincos",
            "eps": 1e-6,
            "self_attention": True,
            "mask_token": False,
        },
    ),
    "SegmentDecoder()": lambda: (decoder(), memories()),
    "MaskTokenDecoder": lambda: (
        sb.MaskTokenDecoder,
        {
            "grid": GRID,
            "dim": 16,
            "depth": 1,
            "num_heads": 2,
            "memory_dim": 8,
            "mlp_ratio": 2.0,
            "positions": "learned",
            "eps": 1e-6,
        },
    ),
    "QueryStreamDecoder": lambda: (
        sb.QueryStreamDecoder,
        {
            "grid": GRID,
            "dim": 16,
            "depth": 1,
            "norm": torch.nn.LayerNorm(16),
            "num_heads": 2,
            "mlp_ratio": 2.0,
            "eps": 1e-6,
        },
    ),
    "QueryStreamDecoder.sharing": lambda: (
        sb.QueryStreamDecoder.sharing,
        {"encoder": encoder(), "depth": 1},
    ),
    "DecoderReader": lambda: (
        sb.DecoderReader,
        {"router": sb.LastLayerRouter(decoder_depth=1), "decoder": decoder()},
    ),
    "QueryReader": lambda: (sb.QueryReader, {"dim": 16}),
    "NextReader": lambda: (parts.NextReader, {"dim": 16, "num_tokens": 4, "step": 1}),
    "PositionTable": lambda: (parts.PositionTable, {"table": torch.rand(4, 8), "num_prefix": 0}),
    "PositionTable.sincos": lambda: (parts.PositionTable.sincos, {"grid": GRID, "dim": 8}),
    "PositionTable.learned": lambda: (parts.PositionTable.learned, {"grid": GRID, "dim": 8}),
    "PositionTable()": lambda: (parts.PositionTable(torch.rand(4, 8)), {"index": torch.zeros(2, 1).long()}),
    "sincos_table": lambda: (parts.sincos_table, {"grid": GRID, "dim": 8}),
    "resample_positions": lambda: (
        parts.resample_positions,
        {"table": torch.rand(1, 5, 8), "old": GRID, "new": GRID, "num_prefix": 1, "antialias": False},
    ),
    "PixelTarget": lambda: (
        sb.PixelTarget,
        {"tokenizer": tokenizer(), "normalize": True, "blur": (3, 1.0)},
    ),
    "PixelTarget()": lambda: (sb.PixelTarget(tokenizer()), {"images": IMAGES}),
    "PositionTarget": lambda: (sb.PositionTarget, {"tokenizer": tokenizer()}),
    "EncoderTarget": lambda: (sb.EncoderTarget, {"encoder": encoder(), "layers": 1, "norm": "token"}),
    "HOGTarget": lambda: (parts.HOGTarget, {"tokenizer": tokenizer(), "bins": 9, "cell": 2}),
    "DCTTarget": lambda: (parts.DCTTarget, {"tokenizer": tokenizer(), "lowest": 2}),
    "ClusterTarget": lambda: (
        parts.ClusterTarget,
        {"base": sb.PixelTarget(tokenizer()), "centers": torch.rand(5, 48)},
    ),
    "kmeans": lambda: (parts.kmeans, {"values": torch.rand(9, 2), "count": 3, "iterations": 2, "seed": 0}),
    "MovingAverage": lambda: (sb.MovingAverage, {"of": torch.nn.Linear(2, 2), "momentum": 0.9}),
    "MovingAverage.before_step": lambda: (
        sb.MovingAverage(torch.nn.Linear(2, 2), 0.9).before_step,
        {"progress": sb.Progress(0, 0, 2, 1)},
    ),
    "cosine_momentum": lambda: (parts.cosine_momentum, {"start": 0.9}),
    "predicted_mse": lambda: (sb.predicted_mse, rows()),
    "predicted_l1": lambda: (sb.predicted_l1, rows()),
    "predicted_smooth_l1": lambda: (sb.predicted_smooth_l1, {**rows(), "beta": 1.0}),
    "predicted_cosine": lambda: (sb.predicted_cosine, rows()),
    "predicted_cross_entropy": lambda: (sb.predicted_cross_entropy, rows()),
    "match_regions": lambda: (
        parts.match_regions,
        {"student": torch.rand(2, 3, 8), "teacher": torch.rand(2, 4, 8)},
    ),
    "Pairing": lambda: (parts.Pairing, {"start": 0, "stop": 2, "teachers": (0,), "weight": 1.0}),
    "paired_cross_entropy": lambda: (
        parts.paired_cross_entropy,
        {
            "student": torch.rand(2, 5),
            "teacher": torch.rand(2, 5),
            "center": torch.rand(5),
            "match": torch.zeros(2, 1).long(),
            "pairings": (parts.Pairing(0, 2, (0,), 1.0),),
            "student_temperature": 0.1,
            "teacher_temperature": 0.04,
            "overwrite": False,
        },
    ),
    "nt_xent": lambda: (parts.nt_xent, {"embeddings": torch.rand(3, 2, 4), "temperature": 0.5}),
    "vicreg": lambda: (
        parts.vicreg,
        {"embeddings": torch.rand(3, 2, 4), "invariance": 1.0, "variance": 1.0, "covariance": 1.0},
    ),
    "koleo": lambda: (parts.koleo, {"embeddings": torch.rand(3, 4)}),
    "sigreg": lambda: (
        parts.sigreg,
        {"embeddings": torch.rand(3, 4), "directions": torch.rand(4, 5), "knots": 17, "reach": 5.0},
    ),
    "explicit_attention": lambda: (
        parts.explicit_attention,
        {name: torch.rand(1, 1, 2, 4) for name in ("query", "key", "value")} | {"dropout_p": 0.0, "scale": 1.0},
    ),
    "gathered": lambda: (parts.gathered, {"x": torch.rand(2, 3)}),
    # encoders
    "timm_vit": lambda: (
        sb.encoders.timm_vit,
        {"name": "vit_tiny_patch16_224", "image_size": 8, "patch_size": 4, "channels": 3, "positions": "sincos"}
        | {"class_token": True, "pretrained": False, **SIZE},
    ),
    "timm_regions": lambda: (
        sb.encoders.timm_regions,
        {"name": "resnet10t", "image_size": 64, "channels": 3},
    ),
    "GridTransformer": lambda: (
        sb.encoders.GridTransformer,
        {"image_size": 8, "patch_size": 4, "channels": 3, "dim": 16, "depth": 1, "num_heads": 2, "mlp_ratio": 2.0}
        | {"positions": "learned", "num_prefix": 1},
    ),
    "PostNormTransformer": lambda: (
        sb.encoders.PostNormTransformer,
        {"grid": 2, "patch": 4, "channels": 3, "depth": 1, "num_heads": 2, "mlp_ratio": 3, "dropout": 0.1},
    ),
    "TokenRegions": lambda: (
        sb.encoders.TokenRegions,
        {"encoder": encoder(True), "class_token": True},
    ),
    "wrap": lambda: (sb.encoders.wrap, {"module": encoder().module}),
    "TimmViT.embed": lambda: (encoder().embed, {"x": IMAGES}),
    "TimmViT.encode": lambda: (
        encoder().encode,
        {
            "tokens": torch.rand(2, 3, 16),
            "index": torch.arange(3).expand(2, -1),
            "mask": torch.ones(1, 1, 3, 3, dtype=torch.bool),
        },
    ),
    "TimmViT.features": lambda: (encoder().features, {"images": IMAGES}),
    "attention_weights": lambda: (
        sb.encoders.attention_weights,
        {"encoder": encoder(), "images": IMAGES, "layer": -1},
    ),
    "read_state": lambda: (
        __import__("ssl_blocks.encoders.weights", fromlist=["read_state"]).read_state,
        {"source": {"weight": torch.rand(2)}},
    ),
    # objectives
    **BUILDERS,
    "SegmentPrediction()": lambda: (objective("randsac"), {"images": IMAGES, "draw": draw()}),
    "SegmentPrediction.draw": lambda: (
        objective("randsac").draw,
        {"images": IMAGES, "generator": torch.Generator()},
    ),
    "PatchPuzzle()": lambda: (objective("PatchPuzzle"), {"images": IMAGES}),
    "ViewRegionDistillation()": lambda: (objective("ViewRegionDistillation"), {"images": views()}),
    "JointEmbedding()": lambda: (objective("JointEmbedding"), {"images": views()}),
    "WeightedSum()": lambda: (objective("WeightedSum"), {"images": IMAGES}),
    "TeacherSchedule": lambda: (
        sb.TeacherSchedule,
        {"temperature": 0.04, "warmup_temperature": 0.04, "warmup_epochs": 0, "momentum": 0.996},
    ),
    "Center": lambda: (sb.objectives.Center, {"dim": 8, "momentum": 0.9}),
    "dino_head": lambda: (
        sb.dino_head,
        {"dim": 8, "out_dim": 8, "hidden_dim": 8, "bottleneck_dim": 4, "batch_norm": False, "norm_last_layer": True},
    ),
    "MaskedViews": lambda: (
        sb.objectives.MaskedViews,
        {"encoder": encoder(True), "partitioner": sb.SubsetPartitioner(hidden=0.5), "momentum": 0.9, "share": 0.5},
    ),
    "DistilledViews": lambda: (
        sb.objectives.DistilledViews,
        {"views": masked_views(), "head": head(), "out_dim": 8, "student_temperature": 0.1, "center_momentum": 0.9},
    ),
    "DistilledTokens": lambda: (
        sb.objectives.DistilledTokens,
        {"views": masked_views(), "head": head(), "out_dim": 8, "student_temperature": 0.1, "center_momentum": 0.9},
    ),
    "SpreadViews": lambda: (sb.objectives.SpreadViews, {"views": masked_views()}),
    # data
    "RandomResizedCropFlip": lambda: (
        sb.data.RandomResizedCropFlip,
        {"size": 8, "scale": (0.2, 1.0), "ratio": (0.75, 1.3), "flip": True},
    ),
    "RandomResizedCropFlip()": lambda: (
        sb.data.RandomResizedCropFlip(8),
        {"images": IMAGES, "generator": torch.Generator()},
    ),
    "ColorChanges": lambda: (
        sb.data.ColorChanges,
        {"jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1, "grey": 0.2}
        | {"blur": (1.0, 0.1, 0.5), "sigma": (0.1, 2.0), "solarize": 0.2},
    ),
    "MultiCrop": lambda: (
        sb.data.MultiCrop,
        {"global_size": 8, "local_size": 4, "num_local": 2, "mean": MEAN, "std": STD, "flip": True}
        | {"global_scale": (0.4, 1.0), "local_scale": (0.05, 0.4)},
    ),
    "to_float": lambda: (sb.data.to_float, {"images": EIGHT_BITS, "mean": MEAN, "std": STD}),
    "denormalize": lambda: (sb.data.denormalize, {"images": IMAGES, "mean": MEAN, "std": STD}),
    "RunSampler": lambda: (
        sb.data.RunSampler,
        {"num_images": 20, "batch_size": 4, "seed": 0, "epochs": 1, "first_step": 0, "rank": 0, "world_size": 1}
        | {"accumulate": 1},
    ),
    "train_loader": lambda: (
        sb.data.train_loader,
        {"split": image_split(), "seed": 0, "crop": sb.data.RandomResizedCropFlip(8), "workers": 0, "batch_size": 4},
    ),
    "share_of_cores": lambda: (sb.data.share_of_cores, {"processes": 1}),
    "ImageSplit": lambda: (sb.data.ImageSplit, {"images": EIGHT_BITS, "labels": torch.zeros(2).long()}),
    "ImageSplit.read": lambda: (image_split().read, {"index": torch.arange(2)}),
    "ShapeImages": lambda: (
        sb.data.ShapeImages,
        {"num": 2, "size": 16, "seed": 0, "max_shapes": 2, "channels": 3},
    ),
    "load": lambda: (
        sb.data.load,
        {"name": "digits", "image_size": 8, "channels": 1, "max_train": 20, "max_test": 10, "seed": 0}
        | {"storage": "auto", "max_bytes": 2**20, "corrupt": "error"},
    ),
    # evaluation
    "Extractor": lambda: (
        Extractor,
        {"encoder": encoder(), "mean": MEAN, "std": STD, "tokenizer": tokenizer(), "device": "cpu"}
        | {"attention": "bidirectional", "batch_size": 8},
    ),
    "Extractor()": lambda: (extractor(), {"images": EIGHT_BITS}),
    "Labelled": lambda: (Labelled, {"train": image_split(), "test": image_split(), "name": "images"}),
    "Classifier": lambda: (
        evaluation.Classifier,
        {"encoder": encoder(), "num_classes": 4, "fresh_norm": False},
    ),
    "FeaturePyramid": lambda: (
        evaluation.FeaturePyramid,
        {"encoder": encoder(), "out_channels": 8, "freeze": False},
    ),
    "UPerHead": lambda: (
        evaluation.UPerHead,
        {"in_channels": 8, "num_classes": 4, "width": 8, "num_levels": 4},
    ),
    "RawPixels": lambda: (evaluation.RawPixels, {"channels": 3, "size": (8, 8)}),
    "knn_accuracy": lambda: (
        evaluation.knn_accuracy,
        {"bank": FEATURES, "bank_labels": LABELS, "queries": FEATURES, "query_labels": LABELS, "k": 2}
        | {"temperature": 0.1, "chunk": 8},
    ),
    "fewshot_probe": lambda: (
        evaluation.fewshot_probe,
        {**split(), "shots": 2, "seeds": (0, 1), "c": 1.0, "device": "cpu"},
    ),
    "linear_probe": lambda: (evaluation.linear_probe, {**split(), "seed": 0, "device": "cpu"}),
    "logistic_probe": lambda: (
        evaluation.logistic_probe,
        {**split(), "cs": (1.0,), "standardize": True, "validation": 0.25, "max_iterations": 5, "seed": 0}
        | {"device": "cpu"},
    ),
    "score_features": lambda: (
        evaluation.score_features,
        {"name": "one", **split(), "shots": 2, "device": "cpu"},
    ),
    "segmentation_loss": lambda: (
        evaluation.segmentation_loss,
        {"logits": torch.rand(2, 3, 4, 4), "masks": torch.zeros(2, 4, 4).long()},
    ),
    "layer_ids": lambda: (evaluation.layer_ids, {"encoder": encoder()}),
    "set_drop_path": lambda: (evaluation.set_drop_path, {"module": encoder().module, "rate": 0.1}),
    # pictures
    "draw_segments": lambda: (
        visualize.draw_segments,
        {"images": IMAGES, "segments": sb.TokenPartitioner()(IMAGES, GRID), "grid": GRID},
    ),
    "draw_masks": lambda: (
        visualize.draw_masks,
        {"masks": masks(), "serialization": draw(), "image_index": 0},
    ),
    "draw_features": lambda: (
        visualize.draw_features,
        {"images": IMAGES, "features": torch.rand(2, 4, 8), "grid": GRID},
    ),
    "draw_steps": lambda: (
        visualize.draw_steps,
        {"images": IMAGES, "predictions": IMAGES, "serialization": draw(), "grid": GRID, "image_indices": (0,)}
        | {"predict_first": False},
    ),
    "draw_reconstructions": lambda: (
        visualize.draw_reconstructions,
        {"images": IMAGES, "targets": IMAGES, "predictions": IMAGES, "grid": GRID}
        | {"known": torch.ones(2, 4, dtype=torch.bool)},
    ),
    "draw_matches": lambda: (
        visualize.draw_matches,
        {"first": IMAGES[0], "second": IMAGES[1], "match": torch.arange(4), "grids": (GRID, GRID), "num_regions": 2},
    ),
    "draw_puzzles": lambda: (
        visualize.draw_puzzles,
        {"patches": torch.rand(2, 4, 3, 4, 4), "shuffled": torch.arange(4).expand(2, -1), "grid": GRID}
        | {"guessed": torch.arange(4).expand(2, -1)},
    ),
    "draw_curves": lambda: (visualize.draw_curves, {"runs": {"one": Path("nowhere")}, "references": {"two": 1.0}}),
}
