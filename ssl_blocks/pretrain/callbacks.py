"""A Lightning callback: labelled scores while training."""

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl

from ssl_blocks.engine.loop import Loop
from ssl_blocks.engine.parallel import whole_weights
from ssl_blocks.objectives import Objective
from ssl_blocks.pretrain.scoring import Features, Sample


class OnlineScores(pl.Callback):
    """Watch what the features are worth while they form: accuracy of kNN and of a linear probe on the test images.

    Both are of the same features, every so many optimizer steps and after the last one; ``None``: never. What cannot be
    scored is told, and the run goes on.
    """

    def __init__(
        self,
        objective: Objective,
        sample: Sample,
        *,
        knn_every: int | None = None,
        probe_every: int | None = None,
        tell: Callable[[str], None] = print,
    ) -> None:
        self.objective, self.sample, self.tell = objective, sample, tell
        self.every = {"knn": knn_every, "probe": probe_every}
        self.latest: dict[str, float] = {}
        self.features: Features | None = None
        self.step = -1

    def remark(self) -> str:
        """The latest scores, for a line of progress."""
        titles = {"knn": "kNN", "probe": "probe"}
        return "".join(f"  {titles[name]} {score:.1%}" for name, score in self.latest.items())

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Score and log where it is due."""
        assert isinstance(pl_module, Loop)
        step, last = trainer.global_step, trainer.global_step == trainer.max_steps
        due = [name for name, every in self.every.items() if every is not None and (step % every == 0 or last)]
        if not pl_module.step_is_done or not due:
            return
        # where the weights are dealt out, every process has to help in putting them together
        if not trainer.is_global_zero and pl_module.device_mesh is None:
            return
        try:
            with whole_weights(self.objective):
                self.features = self.sample.of_encoder(self.objective, pl_module.device)
            found = {name: getattr(self.features, name)(pl_module.device) for name in due}
        except ValueError as error:
            if trainer.is_global_zero:
                self.tell(f"warning: no {' and '.join(due)} after step {step}: {' '.join(str(error).split())}")
            return
        self.step, self.latest = step, self.latest | found
        epoch = step / pl_module.task.plan.steps_per_epoch
        for logger in trainer.loggers:
            logger.log_metrics({**found, "epoch": epoch}, step - 1)

    def found(self, sample: Sample, step: int) -> Features | None:
        """Features of a sample after a step, where these are the latest that were looked at."""
        return self.features if sample is self.sample and step == self.step else None
