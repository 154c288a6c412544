"""A Lightning callback: kNN while training."""

from typing import Any

import pytorch_lightning as pl
import torch

from ssl_blocks.data import ImageData, ImageSplit
from ssl_blocks.engine.loop import Loop
from ssl_blocks.engine.parallel import whole_weights
from ssl_blocks.evaluation import Extractor, knn_accuracy
from ssl_blocks.objectives import Objective


class OnlineKnn(pl.Callback):
    """Watch what the features are worth while they form: kNN accuracy on the test images.

    Args:
        objective: whose encoder is watched.
        data: in memory, with labels in both splits.
        every: optimizer steps between two looks; there is one after the last step, too.
        autocast_dtype: precision of the encoder.
    """

    def __init__(
        self, objective: Objective, data: ImageData, *, every: int, autocast_dtype: torch.dtype | None
    ) -> None:
        self.objective, self.data, self.every, self.autocast_dtype = objective, data, every, autocast_dtype
        self.latest: float | None = None

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
            for logger in trainer.loggers:
                epoch = step / pl_module.task.plan.steps_per_epoch
                logger.log_metrics({"knn": self.latest, "epoch": epoch}, step - 1)

    def score(self, device: torch.device | str) -> float:
        """KNN accuracy of the encoder as it stands, on ``device``."""
        encoder = self.objective.export_encoder()
        train, test = self.data.train, self.data.test
        assert isinstance(train, ImageSplit)
        assert isinstance(test, ImageSplit)
        assert train.labels is not None
        assert test.labels is not None
        place = (device, self.autocast_dtype)
        extractor = Extractor(encoder, self.data.mean, self.data.std, self.objective.tokenizer, *place)
        bank, queries = extractor(train.images), extractor(test.images)
        return knn_accuracy(bank, train.labels, queries, test.labels, k=min(20, len(bank)))
