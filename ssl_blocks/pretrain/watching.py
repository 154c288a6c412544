"""What is watched of a run, as its configuration asks."""

from dataclasses import dataclass
from functools import cached_property, partial

import pytorch_lightning as pl
from rich.console import Console

from ssl_blocks.data import ImageData
from ssl_blocks.engine.parallel import Machine
from ssl_blocks.evaluation import FeatureQuality
from ssl_blocks.objectives import Objective
from ssl_blocks.pretrain.callbacks import OnlineScores
from ssl_blocks.pretrain.config import RunConfig
from ssl_blocks.pretrain.looking import Look, QualitySample
from ssl_blocks.pretrain.module import PretrainModule
from ssl_blocks.pretrain.report import stage
from ssl_blocks.pretrain.scoring import Sample

NUM_TEST, LOOKS, IMAGES_AT_A_TIME = 10_000, 10, 256


@dataclass
class Watcher:
    """Scores with labels, looks without, and what they tell."""

    config: RunConfig
    module: PretrainModule
    machine: Machine
    images: ImageData | None  # in memory; ``None`` in processes that do not help
    sample: Sample | None  # those with labels, where there are some
    console: Console

    def __post_init__(self) -> None:
        self.tell = partial(self.console.print, soft_wrap=True)
        self.online, self.look = self._online(), self._look()

    @property
    def callbacks(self) -> list[pl.Callback]:
        """Those that there are."""
        return [callback for callback in (self.online, self.look) if callback is not None]

    def remark(self) -> str:
        """The latest of all, for a line of progress."""
        return "".join(watch.remark() for watch in (self.online, self.look) if watch is not None)

    def measure(self, name: str, objective: Objective) -> dict[str, FeatureQuality]:
        """What features of the encoder as it stands, which ends up on CPU, are without labels, by name.

        What the last look has found is known. Nothing where scores are not wanted, or features cannot be measured.
        """
        if not self.config.trainer.score or self.images is None:
            return {}
        known = None if self.look is None else self.look.found(self.module.plan.num_steps)
        if known is not None:
            return {name: known}
        try:
            with stage(self.console, f"measuring features of {name} without labels"):
                return {name: self._quality.measure(objective, self.machine.device)}
        except Exception as error:  # whatever it is, the run goes on without
            self.tell(f"warning: features of {name} are not measured: {' '.join(str(error).split())}")
            return {}
        finally:
            objective.export_encoder().module.to("cpu")

    @cached_property
    def _quality(self) -> QualitySample:
        assert self.images is not None
        settings = self.config.optimizer
        of_step = settings.batch_size // (self.machine.processes.world_size * settings.accumulate)
        return QualitySample(
            self.images,
            self.module.augment,
            autocast_dtype=self.machine.autocast_dtype,
            batch_size=min(IMAGES_AT_A_TIME, of_step),  # what a step has memory for
        )

    def _online(self) -> OnlineScores | None:
        settings, steps = self.config.trainer, self.module.plan.steps_per_epoch
        asked = {"knn_every": settings.knn_every, "probe_every": settings.probe_every}
        every = {name: epochs * steps for name, epochs in asked.items() if epochs is not None}
        if not every:
            return None
        if self.sample is None:
            verb = "have" if len(every) > 1 else "has"
            names = " and ".join(f"trainer.{name}" for name in every)
            self.tell(f"{names} {verb} no effect: there are no labels, or no test images")
            return None
        part = self.sample.part(settings.knn_bank, NUM_TEST)
        return OnlineScores(self.module.objective, part, **every, tell=self.tell)

    def _look(self) -> Look | None:
        settings, plan = self.config.trainer, self.module.plan
        if settings.look_every is None or self.images is None:
            return None
        epochs = max(1, settings.epochs // LOOKS) if settings.look_every == "auto" else settings.look_every
        folder = self.config.folder / "figures" / "steps"
        return Look(self.module.objective, self._quality, folder, every=epochs * plan.steps_per_epoch, tell=self.tell)
