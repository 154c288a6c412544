"""EsViT and DINO: self-distillation between views of an image, and between their regions.

Papers    Li, Yang, Zhang, Gao, Xiao, Dai, Yuan, Gao: "Efficient Self-supervised Vision Transformers for Representation
          Learning" (EsViT); Caron, Touvron, Misra, Jegou, Mairal, Bojanowski, Joulin: "Emerging Properties in
          Self-Supervised Vision Transformers" (DINO, which is region_weight 0)
Idea      Cut large and small crops out of an image. A student says of each what its own moving average says of another
          crop, a large one; and it says of each region what the teacher says of the most similar region there. A moving
          centre and a low temperature keep the teacher from saying the same of everything.
Commands  ssl-blocks esvit --preset esvit_digits        crowds of digits, 2 minutes on 2 CPU cores
          ssl-blocks esvit --preset esvit_cifar_small   CPU size, under 5 minutes on 2 CPU cores
          ssl-blocks esvit --help                       every option
Results   docs/results.md
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

import ssl_blocks as sb
from ssl_blocks.bounds import Classes, Crops, Depth, Heads, NotNegative, Number, Pixels, Positive, Tokens, Whole, Width
from ssl_blocks.engine import DataConfig, OptimizerConfig, StrictModel, section
from ssl_blocks.engine.settings import Schedules, values_of
from ssl_blocks.pretrain import EncoderConfig, Recipe, RunConfig, TorchvisionEncoderConfig, TransformersEncoderConfig
from ssl_blocks.pretrain.encoders import NOT_TOKENS, NamedEncoder


class MapEncoderConfig(NamedEncoder):
    """A timm model that ends in a map of features: Swin, PVT, ConvNeXt, ResNet."""

    kind: Literal["map"] = "map"
    name: str = Field(
        "swin_tiny_patch4_window7_224",
        description="timm model that gives all sizes not set here; with a tag, local-dir:FOLDER of an export or "
        "hf-hub:OWNER/NAME it starts from weights",
    )
    patch_size: Tokens | None = Field(None, description="side of a patch in pixels; default: the model's")
    window_size: Tokens | None = Field(None, description="side of a window in tokens; default: the model's")
    width: Width | None = Field(None, description="token width of the first stage; default: the model's")
    stage_depths: tuple[Depth, ...] | None = Field(None, description="blocks per stage; default: the model's")
    stage_heads: tuple[Heads, ...] | None = Field(None, description="attention heads likewise")
    drop_path: float | None = Field(None, ge=0, lt=1, description="drop path of the student; default: the model's")

    def build(self, *, image_size: tuple[int, int], channels: int) -> sb.encoders.TimmRegions:
        """Build the encoder for global crops of this size."""
        with section("encoder"):
            return sb.encoders.timm_regions(self.name, image_size=image_size, channels=channels, **self.for_timm())


class ViTEncoderConfig(EncoderConfig):
    """A vision transformer: its class token speaks for the image, its patch tokens are the regions."""

    kind: Literal["vit"] = "vit"
    class_token: bool = Field(True, description="put a class token in front; otherwise tokens are averaged")

    def build(self, *, image_size: int | tuple[int, int], channels: int, **more: Any) -> sb.encoders.TokenEncoder:
        """Build the encoder for global crops of this size, whose plain model returns the same feature."""
        pool = "token" if self.class_token else "avg"
        return super().build(image_size=image_size, channels=channels, global_pool=pool, **more)


RegionEncoderConfig = Annotated[
    MapEncoderConfig | ViTEncoderConfig | TorchvisionEncoderConfig | TransformersEncoderConfig,
    Field(discriminator="kind"),
]


class CropsConfig(StrictModel):
    """Two large crops as large as the images, and small ones; data.flip mirrors them."""

    num_local: Crops = Field(8, description="number of small crops")
    local_size: Pixels = Field(96, description="their side in pixels")
    global_scale: tuple[float, float] = Field((0.4, 1.0), description="share of the area that a large crop keeps")
    local_scale: tuple[float, float] = Field((0.05, 0.4), description="share of the area that a small crop keeps")
    color: float = Field(1.0, ge=0, le=2.5, description="strength of the colour jitter; 1 is DINO's")
    solarize: float = Field(0.2, ge=0, le=1, description="share of the second large crops that are solarized")
    blur_sigma: tuple[Number, Number] = Field((0.1, 2.0), description="smallest and largest blur in pixels")

    def build(
        self, shape: sb.data.ImageShape, *, flip: bool, mean: Sequence[float], std: Sequence[float]
    ) -> sb.data.MultiCrop:
        """Build what makes the views."""
        with section("crops"):
            colors = sb.data.ColorChanges(
                brightness=0.4 * self.color,
                contrast=0.4 * self.color,
                saturation=0.2 * self.color,
                hue=0.1 * self.color,
                sigma=self.blur_sigma,
                solarize=self.solarize,
            )
            own = values_of(self, "local_size", "num_local", "global_scale", "local_scale")
            return sb.data.MultiCrop((shape.height, shape.width), flip=flip, mean=mean, std=std, colors=colors, **own)


class HeadConfig(StrictModel):
    """The heads, thrown away after pretraining."""

    out_dim: Classes = Field(65_536, description="number of classes")
    hidden: Width = Field(2048, description="width of the hidden layers")
    bottleneck: Width = Field(256, description="width before the last layer")
    norm_last_layer: bool = Field(True, description="keep the rows of the last layer at length 1")
    freeze_epochs: Whole = Field(1, description="epochs in which the last layer stands still")


class TeacherConfig(StrictModel):
    """How sharp the teacher is, and how slowly it follows."""

    temperature: Positive = Field(0.04, description="of its softmax, after the warm-up")
    warmup_temperature: Positive = Field(0.04, description="of its softmax in the first epoch")
    warmup_epochs: Whole = Field(0, description="epochs of going from one to the other")
    momentum: float = Field(0.996, ge=0, le=1, description="of its weights in the first step; 1 after the last")
    center_momentum: float = Field(0.9, ge=0, le=1, description="of the centres of its logits")


class EsViTOptimizer(OptimizerConfig):
    """AdamW, with the learning rate of DINO's and EsViT's code: the last step of the warm-up has the peak."""

    schedule: Schedules = "dino"


class EsViTConfig(RunConfig):
    """Everything an EsViT run depends on."""

    data: DataConfig = DataConfig()  # type: ignore[assignment] # crops have scales of their own
    encoder: RegionEncoderConfig = MapEncoderConfig()  # type: ignore[assignment]
    untrainable: ClassVar[dict[str, str]] = {"original": NOT_TOKENS["original"]}
    optimizer: EsViTOptimizer = EsViTOptimizer()
    crops: CropsConfig = CropsConfig()
    head: HeadConfig = HeadConfig()
    teacher: TeacherConfig = TeacherConfig()
    region_weight: float = Field(0.5, ge=0, le=1, description="share of the loss of regions; 0 is DINO")
    koleo_weight: NotNegative = Field(0.0, description="of KoLeo, which keeps features of images apart; DINOv2 has 0.1")
    student_temperature: Positive = Field(0.1, description="of the student's softmax")

    def augmentation(self, shape: sb.data.ImageShape, mean: Sequence[float], std: Sequence[float]) -> sb.data.MultiCrop:
        """Several crops of every image."""
        return self.crops.build(shape, flip=self.data.flip, mean=mean, std=std)


def assemble(config: EsViTConfig, data: sb.data.ImageData) -> sb.ViewRegionDistillation:
    """Put the objective together from its parts."""
    encoder = config.encoder.build(image_size=data.shape[1:], channels=data.shape.channels)
    regions = sb.encoders.TokenRegions(encoder) if isinstance(encoder, sb.encoders.TokenEncoder) else encoder
    head, teacher = config.head, config.teacher
    return sb.ViewRegionDistillation(
        encoder=regions,
        out_dim=head.out_dim,
        head=partial(
            sb.dino_head, hidden_dim=head.hidden, bottleneck_dim=head.bottleneck, norm_last_layer=head.norm_last_layer
        ),
        region_weight=config.region_weight,
        koleo_weight=config.koleo_weight,
        student_temperature=config.student_temperature,
        schedule=sb.TeacherSchedule(
            **values_of(teacher, "temperature", "warmup_temperature", "warmup_epochs", "momentum")
        ),
        center_momentum=teacher.center_momentum,
        freeze_epochs=head.freeze_epochs,
    )


RECIPE = Recipe("esvit", EsViTConfig, assemble, presets=Path(__file__).parent / "presets")
