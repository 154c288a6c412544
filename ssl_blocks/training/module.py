"""The objective and its data as a Lightning module."""

from typing import Any

import pytorch_lightning as pl
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader

from ssl_blocks.data import EpochBatches, ImageData, RandomResizedCropFlip, to_float
from ssl_blocks.objectives import ObjectiveModule
from ssl_blocks.randomness import seeded_generator
from ssl_blocks.training.config import RunConfig, section
from ssl_blocks.training.optimizers import adamw, check_warmup, warmup_cosine
from ssl_blocks.values import Progress


class PretrainModule(pl.LightningModule):
    """Feed an objective with augmented batches, seeded per step.

    Each step draws from a generator made of (seed, process rank, step), so that a resumed run draws what the
    uninterrupted one would have drawn.

    Args:
        objective: what is trained.
        data: images in memory.
        config: sizes and rates.
    """

    def __init__(self, objective: ObjectiveModule, data: ImageData, config: RunConfig) -> None:
        super().__init__()
        self.objective, self.data, self.config = objective, data, config
        size = (data.train.images.shape[2], data.train.images.shape[3])
        with section("data.crop_scale"):
            self.augment = RandomResizedCropFlip(size, scale=config.data.crop_scale, flip=config.data.flip)
        # a function, not a module: that would be registered, and be saved, a second time
        self.step_function = torch.compile(objective.forward) if config.trainer.compile else objective.forward
        self.batches: EpochBatches | None = None

    def check(self) -> None:
        """Try everything once on two images, on CPU.

        Raises:
            ValueError: if a part does not fit another, or the data is too small for a batch.
        """
        settings = self.config.optimizer
        EpochBatches(self.data.train.images, settings.batch_size, seed=self.config.seed)
        check_warmup(self.num_steps, self.warmup_steps)
        images = to_float(self.data.train.images[:2], self.data.mean, self.data.std)
        generator = seeded_generator("cpu", self.config.seed)
        with torch.no_grad():
            self.objective(images, self.objective.draw(images, generator=generator))

    @property
    def warmup_steps(self) -> int:
        """Optimizer steps of the warm-up."""
        return int(self.config.optimizer.warmup_epochs * self.steps_per_epoch)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch."""
        world = self.trainer.world_size if self._trainer is not None else 1
        return len(self.data.train.images) // (self.config.optimizer.batch_size // world * world)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps_per_epoch * self.config.trainer.epochs

    def train_dataloader(self) -> DataLoader[Tensor]:
        """Batches of uint8 images that lie on the device already."""
        world = self.trainer.world_size
        self.batches = EpochBatches(
            self.data.train.images.to(self.device),
            self.config.optimizer.batch_size // world,
            seed=self.config.seed,
            rank=self.global_rank,
            world_size=world,
        )
        return DataLoader(self.batches, batch_size=None)

    def on_train_epoch_start(self) -> None:
        """Shuffle anew."""
        assert self.batches is not None
        self.batches.set_epoch(self.current_epoch)

    def training_step(self, batch: UInt8[Tensor, "b c h w"], batch_index: int) -> Tensor:
        """Augment, draw, and compute the loss."""
        step = self.global_step
        self.objective.before_step(
            Progress(
                step=step, epoch=self.current_epoch, num_steps=self.num_steps, steps_per_epoch=self.steps_per_epoch
            )
        )
        generator = seeded_generator(self.device, self.config.seed, self.global_rank, step)
        images = to_float(batch, self.data.mean, self.data.std)
        images = self.augment(images, generator=generator)
        out = self.step_function(images, self.objective.draw(images, generator=generator))
        self.log("loss", out.loss)
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        for name, value in out.metrics.items():
            self.log(name, value)
        loss: Tensor = out.loss
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then let the objective follow the new weights."""
        super().optimizer_step(*args, **kwargs)
        self.objective.after_step()

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and cosine."""
        settings = self.config.optimizer
        optimizer = adamw(self.objective, settings, no_weight_decay=self.objective.no_weight_decay())
        schedule = warmup_cosine(
            optimizer, num_steps=self.num_steps, warmup_steps=self.warmup_steps, min_lr=settings.min_lr
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Set the rate of the step to come."""
        scheduler.step_update(self.global_step)
