"""A Lightning callback: kNN while training."""

from typing import Any

import pytorch_lightning as pl
import torch

from ssl_blocks.engine.loop import Loop
from ssl_blocks.engine.parallel import whole_weights
from ssl_blocks.objectives import Objective
from ssl_blocks.pretrain.scoring import Features, Sample


class OnlineKnn(pl.Callback):
    """Watch what the features are worth while they form: kNN accuracy on the test images.

    Args:
        objective: whose encoder is watched.
        sample: labelled images.
        every: optimizer steps between two looks; there is one after the last step, too.
    """

    def __init__(self, objective: Objective, sample: Sample, *, every: int) -> None:
        self.objective, self.sample, self.every = objective, sample, every
        self.latest: float | None = None
        self.features: Features | None = None
        self.step = -1

    def remark(self) -> str:
        """The latest score, for a line of progress."""
        return "" if self.latest is None else f"  kNN {self.latest:.1%}"

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Score and log where it is due."""
        assert isinstance(pl_module, Loop)
        step = trainer.global_step
        if not pl_module.step_is_done or (step % self.every and step != trainer.max_steps):
            return
        # where the weights are dealt out, every process has to help in putting them together
        if trainer.is_global_zero or pl_module.device_mesh is not None:
            with whole_weights(self.objective):
                self.latest = self.score(pl_module.device)
            self.step = step
            for logger in trainer.loggers:
                epoch = step / pl_module.task.plan.steps_per_epoch
                logger.log_metrics({"knn": self.latest, "epoch": epoch}, step - 1)

    def score(self, device: torch.device | str) -> float:
        """KNN accuracy of the encoder as it stands, on ``device``."""
        self.features = self.sample.of_encoder(self.objective, device)
        return self.features.knn(device)

    def found(self, sample: Sample, step: int) -> Features | None:
        """Features of a sample after a step, where these are the latest that were looked at."""
        return self.features if sample is self.sample and step == self.step else None
