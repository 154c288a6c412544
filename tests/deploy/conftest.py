"""A small finished run, and what was made of its encoder, once for all tests."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_blocks.encoders import load_encoder, timm_vit
from ssl_blocks.evaluation import (
    Classifier,
    FeaturePyramid,
    SegmentationModel,
    UPerHead,
    save_classifier,
    save_segmenter,
)
from tests.pretrain.small import config, prepare

SHORT = (
    "--trainer.epochs=1",
    "--optimizer.warmup_epochs=0.5",
    "--data.max_train=64",
    "--data.max_test=16",
    "--encoder.depth=1",
)
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    prepare(folder, *SHORT).fit()
    return config(folder, *SHORT).folder


@pytest.fixture(scope="session")
def classifier(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its encoder with a head that has opinions."""
    model = Classifier(load_encoder(run / "encoder"), num_classes=10)
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    folder = tmp_path_factory.mktemp("models") / "classifier"
    return save_classifier(model, folder, mean=(0.3,), std=(0.4,), class_names=NAMES)


@pytest.fixture(scope="session")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    encoder = timm_vit(image_size=16, patch_size=4, channels=1, depth=4, embed_dim=16, num_heads=2)
    model = SegmentationModel(FeaturePyramid(encoder, out_channels=4), UPerHead(in_channels=4, num_classes=3)).eval()
    folder = tmp_path_factory.mktemp("models") / "segmenter"
    return save_segmenter(model, folder, mean=(0.3,), std=(0.4,), class_names=("ground", "cell", "wall"))


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey pictures of several sizes at several depths, one that is broken, and a text."""
    folder, noise = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number, name in enumerate(("b.png", "a.png", "deep/er/a.png", "deep/c.jpg", "d.png")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = noise.integers(0, 256, (10 + number, 24 - number)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "broken.png").write_text("no picture")
    (folder / "deep" / "notes.txt").write_text("a text")
    return folder
