"""The objective and its data as a Lightning module."""

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader

from ssl_blocks.data import ImageData, share_of_cores, to_float, train_loader
from ssl_blocks.engine.checkpoints import FORMAT_VERSION, MARK
from ssl_blocks.engine.optimizers import adamw, check_warmup, cosine_weight_decay, warmup_cosine
from ssl_blocks.engine.parallel import shard, sum_over_processes
from ssl_blocks.engine.watch import LossWatch
from ssl_blocks.modes import modes_kept
from ssl_blocks.objectives import Objective
from ssl_blocks.objectives.objective import seen_by
from ssl_blocks.pretrain.config import RunConfig
from ssl_blocks.randomness import mix_seed, seeded_generator
from ssl_blocks.values import Progress


class PretrainModule(pl.LightningModule):
    """Feed an objective with augmented batches, seeded per step.

    Each batch draws from a generator made of (seed, process rank, batch number), so that a resumed run draws what
    the uninterrupted one would have drawn. Losses are averaged over what is predicted in a whole step: by all
    processes, in all accumulated batches.

    Args:
        objective: what is trained; its loss is the mean over the rows of its output that are targets.
        data: images.
        config: sizes and rates.
        world_size: number of processes.
    """

    def __init__(self, objective: Objective, data: ImageData, config: RunConfig, *, world_size: int = 1) -> None:
        super().__init__()
        self.objective, self.data, self.config, self.world = objective, data, config, world_size
        self.augment = config.augmentation(data.shape, data.mean, data.std)
        if config.trainer.compile:
            objective.compile()  # in place: a compiled copy would be registered, and be saved, a second time
        self.watch = LossWatch(config.folder)
        self.resumed_step = 0
        self._seconds_before: float = 0.0
        self._started: float | None = None
        self.counted: Tensor | None = None  # of the step under way: summed loss, predicted rows
        self.rows, self.parts_done = 0, 0
        self.latest: dict[str, Any] = {}  # what the last step is worth logging for

    def check(self) -> None:
        """Try everything once on two images, on CPU.

        Raises:
            ValueError: if a part does not fit another, or the data is too small for a batch.
        """
        if not self.steps_per_epoch:
            raise ValueError(
                f"optimizer.batch_size={self.config.optimizer.batch_size} must not exceed the "
                f"{len(self.data.train)} training images"
            )
        check_warmup(self.num_steps, self.warmup_steps)
        some = self.data.train.read(torch.arange(min(8, len(self.data.train))))[:2]  # unreadable ones may be left out
        plain = to_float(some, self.data.mean, self.data.std)
        generator = seeded_generator("cpu", self.config.seed)
        images = seen_by(self.objective, self.augment(plain, generator=generator))
        # in evaluation mode, for statistics of norms are for training images
        with torch.no_grad(), modes_kept(self.objective, training=False):
            self.objective(images, self.objective.draw(images, generator=generator))

    @property
    def warmup_steps(self) -> int:
        """Optimizer steps of the warm-up."""
        return int(self.config.optimizer.warmup_epochs * self.steps_per_epoch)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch."""
        return len(self.data.train) // self.config.optimizer.batch_size

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps_per_epoch * self.config.trainer.epochs

    def continue_from(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Know where the run stands; the weights come later, with the optimizer.

        Raises:
            ValueError: if the checkpoint holds other weights than this configuration makes.
        """
        ours = {name: tuple(value.shape) for name, value in self.state_dict().items()}
        theirs = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
        differing = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
        if differing:
            name = differing[0]
            raise ValueError(
                f"{path} does not fit the configuration: {name} has shape {theirs.get(name)} there, "
                f"expected {ours.get(name)} ({len(differing)} such)"
            )
        self.resumed_step, self._seconds_before = checkpoint[MARK]["step"], checkpoint[MARK]["seconds"]

    @property
    def seconds(self) -> float:
        """How long training took, over all parts of an interrupted run."""
        return self._seconds_before + (time.perf_counter() - self._started if self._started is not None else 0.0)

    def on_train_start(self) -> None:
        """Look at the clock."""
        self._started = time.perf_counter()

    def on_train_end(self) -> None:
        """Look at the clock again."""
        self._seconds_before, self._started = self.seconds, None

    @property
    def step_is_done(self) -> bool:
        """Whether the batch just trained on was the last part of an optimizer step."""
        return self.parts_done == self.config.optimizer.accumulate

    def configure_model(self) -> None:
        """Deal the parameters out where the strategy has a mesh of processes for it."""
        if self.device_mesh is not None:
            shard(self.objective, self.device_mesh["data_parallel"])

    def train_dataloader(self) -> DataLoader[Tensor]:
        """Batches of uint8 images from the step on at which the run stands."""
        settings, workers, shape = self.config.optimizer, self.config.data.workers, self.data.shape
        return train_loader(
            self.data.train,
            batch_size=settings.batch_size,
            accumulate=settings.accumulate,
            epochs=self.config.trainer.epochs,
            first_step=self.trainer.global_step,
            seed=self.config.seed,
            rank=self.global_rank,
            world_size=self.world,
            crop=self.augment.file_crop((shape.height, shape.width)),
            workers=share_of_cores(self.trainer.num_devices) if workers is None else workers,
            device=self.device,
        )

    def training_step(self, batch: UInt8[Tensor, "b c h w"], batch_index: int) -> Tensor:
        """Augment, draw, and compute the loss: a sum for now, see `on_before_optimizer_step`."""
        step, accumulate = self.global_step, self.config.optimizer.accumulate
        part = batch_index % accumulate
        if part == 0:
            self.objective.before_step(self._progress(step))
            self.counted = None
        self.parts_done = part + 1
        key = (self.config.seed, self.global_rank, step * accumulate + part)
        torch.manual_seed(mix_seed(*key, 1))  # dropout knows no generator
        generator = seeded_generator(self.device, *key)
        plain = to_float(batch, self.data.mean, self.data.std)
        augment = self.augment.finish if self.data.is_streamed else self.augment
        images = seen_by(self.objective, augment(plain, generator=generator))
        out = self.objective(images, self.objective.draw(images, generator=generator))
        self.rows, count = out.is_target.numel(), out.is_target.sum()
        counted = torch.stack([out.loss.detach() * count, count.to(out.loss.dtype)])
        self.counted = counted if self.counted is None else self.counted + counted
        self.latest = out.metrics
        loss: Tensor = out.loss * (count / self.rows)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide by what the whole step predicts, known only now; see to it that the loss is a number."""
        assert self.counted is not None
        total, count = sum_over_processes(self.counted)
        self.watch.see(total, self.global_step)
        # gradients are means over processes and accumulated batches of sums over rows: exactly 1 where all rows count
        scale = self.rows * self.world * self.config.optimizer.accumulate / count.clamp(min=1)
        for parameter in self.parameters():
            if parameter.grad is not None:
                grad = parameter.grad
                (grad.to_local() if hasattr(grad, "to_local") else grad).mul_(scale.to(grad.dtype))
        self.latest = {
            "loss": total / count.clamp(min=1),
            "lr": optimizer.param_groups[0]["lr"],
            "epoch": (self.global_step + 1) / self.steps_per_epoch,
            **self.latest,
        }

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then let the objective follow the new weights."""
        self._set_weight_decay()
        super().optimizer_step(*args, **kwargs)
        self.objective.after_step()

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and cosine."""
        settings = self.config.optimizer
        optimizer = adamw(self.objective, settings, no_weight_decay=self.objective.no_weight_decay())
        schedule = warmup_cosine(
            optimizer,
            num_steps=self.num_steps,
            warmup_steps=self.warmup_steps,
            min_lr=settings.min_lr,
            warmup_start=settings.warmup_start,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Set the rate of the step to come."""
        scheduler.step_update(self.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Mark the checkpoint as ours; never save weights that a bad loss has spoilt."""
        self.watch.check()
        checkpoint[MARK] = {
            "format_version": FORMAT_VERSION,
            "step": self.global_step,
            "seconds": self.seconds,
            "config": self.config.model_dump(mode="json"),
        }

    def _set_weight_decay(self) -> None:
        """Follow the schedule, which knows the step alone, in the group that decays: the first one."""
        settings = self.config.optimizer
        if settings.weight_decay_end is not None:
            decay = cosine_weight_decay(
                settings.weight_decay, settings.weight_decay_end, step=self.global_step, num_steps=self.num_steps
            )
            self.trainer.optimizers[0].param_groups[0]["weight_decay"] = decay

    def _progress(self, step: int) -> Progress:
        return Progress(
            step=step,
            epoch=step // self.steps_per_epoch,
            num_steps=self.num_steps,
            steps_per_epoch=self.steps_per_epoch,
        )
