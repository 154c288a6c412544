"""What all files of the gallery share: a small encoder, a configuration, and the command that trains about a minute."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

import ssl_blocks as sb
from ssl_blocks import cli
from ssl_blocks.engine import DataConfig
from ssl_blocks.engine.settings import CroppedDataConfig
from ssl_blocks.pretrain import EncoderConfig, Recipe, RunConfig
from ssl_blocks.randomness import seeded_generator
from ssl_blocks.testing import NotApplicableError, assert_no_leak

NUM_LOOKED_AT = 512  # training images of which codebooks are made
PRESET = Path(__file__).with_name("small.yaml")


class ViewsConfig(RunConfig):
    """For objectives that take views: two large crops of every image in changed colours, and small ones."""

    data: DataConfig = DataConfig()  # type: ignore[assignment] # crops have scales of their own
    num_local: int = Field(0, ge=0, description="small crops, of half the images' side")

    def augmentation(self, shape: sb.data.ImageShape, mean: Sequence[float], std: Sequence[float]) -> sb.data.MultiCrop:
        """Two large crops, and small ones."""
        size = (shape.height, shape.width)
        half = (shape.height // 2, shape.width // 2)
        options = {"num_local": self.num_local, "mean": mean, "std": std, "flip": self.data.flip}
        return sb.data.MultiCrop(size, half, **options)  # type: ignore[arg-type]


Encoding = tuple[sb.encoders.TokenEncoder, sb.parts.Tokenizer]


def plain_patches(shape: sb.data.ImageShape, sizes: EncoderConfig) -> Encoding:
    """A vision transformer of timm, and patches of pictures."""
    size = (shape.height, shape.width)
    encoder = sizes.build(image_size=size, channels=shape.channels)
    return encoder, sb.PatchTokenizer(image_size=size, patch_size=encoder.patch, channels=shape.channels)


@dataclass(frozen=True)
class Method:
    """A published method as user code: what builds it, and how it is tried.

    Args:
        build: puts the objective together from ``encoder`` and ``tokenizer``; with ``looks`` also from training
            ``images`` ``[n, C, H, W]``.
        class_token: whether the encoder has a class token.
        views: whether the objective takes `Views`.
        num_local: small crops among them.
        looks: whether ``build`` looks at training images.
        draw_looks: whether drawing looks at images or weights.
        pixel_tokens: every pixel is a token, of images that are shrunk to 8x8.
        base_lr: learning rate per 256 images.
        encode: makes encoder and tokenizer for images of a shape, where these are no plain patches of pictures.
        configuration: kind of configuration, where it is one of the method's own.
        tried_on: options of the command that choose other data than pictures.
        tiny_shape: of the images of checks, where these are no pictures.
    """

    build: Callable[..., sb.Objective]
    class_token: bool = False
    views: bool = False
    num_local: int = 0
    looks: bool = False
    draw_looks: bool = False
    pixel_tokens: bool = False
    base_lr: float = 4e-3
    encode: Callable[[sb.data.ImageShape, EncoderConfig], Encoding] = plain_patches
    configuration: type[RunConfig] | None = None
    tried_on: tuple[str, ...] = ()
    tiny_shape: tuple[int, int, int] | None = None

    @property
    def name(self) -> str:
        """Of its file."""
        return Path(self.build.__code__.co_filename).stem

    @property
    def config(self) -> type[RunConfig]:
        """The kind of configuration."""
        return self.configuration or (ViewsConfig if self.views else RunConfig)

    @property
    def recipe(self) -> Recipe[RunConfig]:
        """For the command line, which gives resume, checkpoints and dry runs."""
        return Recipe(self.name, self.config, self.assemble, presets=Path(__file__).parent)

    def assemble(self, config: RunConfig, data: sb.data.ImageData) -> sb.Objective:
        """Put the objective together as configured."""
        encoder, tokenizer = self.encode(data.shape, config.encoder)
        build = partial(self.build, encoder=encoder, tokenizer=tokenizer)
        return build(images=training_images(data)) if self.looks else build()

    def options(self) -> list[str]:
        """Options that belong to the method."""
        own = [f"--preset={PRESET}", f"--name=gallery_{self.name}", f"--optimizer.base_lr={self.base_lr}"]
        own += ["--encoder.class_token=true"] if self.class_token else []
        own += ["--encoder.patch_size=1"] if self.pixel_tokens else []
        own += self.tried_on or [f"--data.image_size={8 if self.pixel_tokens else 32}"]
        return [*own, *([f"--num_local={self.num_local}"] if self.num_local else [])]

    def tiny(self, channels: int = 3, depth: int = 2, batch: int = 4) -> tuple[sb.Objective, Any]:
        """The objective on a grid of 4x4 tokens, and images or views that it takes: for checks."""
        patch = 1 if self.pixel_tokens else 4
        data = CroppedDataConfig(name="noise")
        encoder = EncoderConfig(patch_size=patch, width=16, depth=depth, heads=2, class_token=self.class_token)
        shape = sb.data.ImageShape(*(self.tiny_shape or (channels, 4 * patch, 4 * patch)))
        config = self.config(name="tiny", data=data, encoder=encoder)
        objective = self.assemble(config, sb.data.ImageData.stand_in(shape))
        generator = seeded_generator("cpu", 1)
        images = torch.randn(3, batch, *shape, generator=generator)
        small = images[:, :, :, : 2 * patch, : 2 * patch][:, :, :, :, : 2 * patch].unbind()
        views = sb.Views((*images[:2].unbind(), *small[: self.num_local]), num_global=2)
        return objective, views if self.views else images[0]

    def check(self, draws: int = 32, **size: int) -> None:
        """Prove that nothing leaks, or say why that is no question."""
        objective, images = self.tiny(**size)
        try:
            report = assert_no_leak(objective, images, draws=draws)
        except NotApplicableError as reason:
            print(f"no leak test: {reason}")
            return
        passed = ", ".join(report.passed)
        print(f"no leak in {passed}: predictions see all that they should, and nothing that they must not")
        for name, why in report.not_applicable.items():
            print(f"no leak test of {name}: {why}")

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Check for leaks, train, and say what came of it; ``--data NAME`` and all options of a recipe."""
        words = [
            f"--data.name{word.removeprefix('--data')}" if word == "--data" or word.startswith("--data=") else word
            for word in (sys.argv[1:] if argv is None else argv)
        ]
        given = {word.partition("=")[0] for word in words}
        if "--resume" not in given or {"--name"} & given:
            epochs = 1 if any("imagefolder:" in word or "cifar" in word for word in words) else 10
            own = [*self.options(), f"--trainer.epochs={epochs}"]
            words = [option for option in own if option.partition("=")[0] not in given] + words
        if not given & {"--help", "-h", "--dry-run", "--resume"}:
            self.check()
        code = cli.main(self.recipe, words)
        if code == 0 and not given & {"--help", "-h", "--dry-run"}:
            print(summary(cli.load_config(self.recipe, words).folder))
        return code


def training_images(data: sb.data.ImageData) -> Tensor:
    """Some normalised training images, ``[n, C, H, W]``."""
    num = len(data.train)
    chosen = torch.linspace(0, num - 1, min(NUM_LOOKED_AT, num)).long()  # class folders lie one after the other
    return sb.data.to_float(data.train.read(chosen), data.mean, data.std)


def summary(folder: Path) -> str:
    """Loss and kNN accuracy before and after, in a line."""
    with (folder / "metrics.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file) if row.get("loss")]
    results = json.loads((folder / "results.json").read_text())
    knn = {score["name"]: score["knn"] for score in results["scores"]}
    text = f"loss {losses[0]:.3f} -> {losses[-1]:.3f}"
    if "pretrained encoder" in knn:
        text += f"; kNN {knn['random encoder']:.1%} -> {knn['pretrained encoder']:.1%}"
    return f"{text} in {results['seconds']:.0f} s"
