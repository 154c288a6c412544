"""Looking while it trains: what features are without labels, and pictures of the objective at work."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor

from ssl_blocks.data import Augmentation, ImageData, ImageSplit, to_float
from ssl_blocks.engine.late import Snapshot
from ssl_blocks.engine.loggers import log_picture
from ssl_blocks.engine.loop import Loop
from ssl_blocks.engine.parallel import whole_weights
from ssl_blocks.evaluation import Extractor, FeatureQuality, feature_quality
from ssl_blocks.modes import buffers_kept, modes_kept
from ssl_blocks.objectives import Objective
from ssl_blocks.pretrain.figures import example_images
from ssl_blocks.pretrain.sheet import Row, draw_sheet, make_rows
from ssl_blocks.randomness import seeded_generator
from ssl_blocks.values import Views

NUM_LOOKED_AT = 1024  # images whose features are measured
VIEWS = 1  # what a generator is for
ADVICE = (
    "Look at the newest sheet in {folder}: the learning rate may be too high, the objective may have a trivial answer, "
    "or the target's weights may follow too fast"
)


class QualitySample:
    """Images in memory, always the same, whose features are measured without labels.

    Test images are looked at, or training images where there are none; ``augment`` makes the two views that `alignment`
    compares.
    """

    def __init__(
        self, data: ImageData, augment: Augmentation, *, autocast_dtype: torch.dtype | None, batch_size: int = 256
    ) -> None:
        split = data.train if data.test is None else data.test
        assert isinstance(split, ImageSplit)
        chosen = torch.linspace(0, len(split) - 1, min(NUM_LOOKED_AT, len(split))).long()
        self.data, self.augment, self.images = data, augment, split.images[chosen]
        self.autocast_dtype, self.batch_size = autocast_dtype, batch_size

    def features(self, objective: Objective, device: torch.device | str) -> list[Tensor]:
        """Features of the images, and of two views of them where there are two; nothing is read of a GPU."""
        data, generator = self.data, seeded_generator(device, VIEWS)
        place = (device, self.autocast_dtype)
        encode = Extractor(objective.export_encoder(), data.mean, data.std, objective.tokenizer, *place)
        found: list[list[Tensor]] = []
        for batch in torch.split(self.images, self.batch_size):
            plain = to_float(batch.to(device), data.mean, data.std)
            views = self.augment(plain, generator=generator)
            if isinstance(views, Views):
                pair = views.images[:2] if views.num_global > 1 else ()
            else:
                other = self.augment(plain, generator=generator)
                assert not isinstance(other, Views)
                pair = (views, other)
            found.append([encode.encode(images) for images in (plain, *pair)])
        return [torch.cat(parts) for parts in zip(*found, strict=True)]

    def measure(self, objective: Objective, device: torch.device | str) -> FeatureQuality:
        """What the encoder's features are now; it stays on ``device``."""
        with untouched(objective, device):
            return quality_of([values.cpu() for values in self.features(objective, device)])


def quality_of(found: list[Tensor]) -> FeatureQuality:
    """Measure features as `QualitySample.features` gives them."""
    return feature_quality(found[0], (found[1], found[2]) if len(found) == 3 else None)


@contextmanager
def untouched(objective: Objective, device: torch.device | str) -> Iterator[None]:
    """Look at an objective in evaluation mode, and leave modes, buffers and torch's random state as they were."""
    gpus = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=gpus), buffers_kept(objective), modes_kept(objective, training=False):
        yield


class _Looked(NamedTuple):
    """What a look brought, on its way from a GPU."""

    step: int
    values: Snapshot  # features, and values of rows
    titles: list[Row]  # of the rows


class Look(pl.Callback):
    """Look now and then, and after the last step: measures into the logs, and a sheet of pictures into a folder.

    It draws from generators of its own and leaves everything as it was, so that training computes the same bits. On a
    GPU what was computed is copied beside training, and read a step later. Whatever fails is a line for the user, for
    which ``tell`` is called. ``every`` counts optimizer steps.
    """

    def __init__(
        self,
        objective: Objective,
        sample: QualitySample,
        folder: Path,
        *,
        every: int,
        tell: Callable[[str], None] = print,
    ) -> None:
        self.objective, self.sample, self.folder, self.every, self.tell = objective, sample, folder, every, tell
        self.latest: FeatureQuality | None = None
        self.step = -1
        self.is_warned = False
        self._looked: _Looked | None = None

    def remark(self) -> str:
        """The latest rank, for a line of progress."""
        return "" if self.latest is None else f"  RankMe {self.latest.rankme:.1f}"

    def found(self, step: int) -> FeatureQuality | None:
        """What features were after a step, where that was the latest look."""
        return self.latest if step == self.step else None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Look where it is due, and show what the look before has brought."""
        assert isinstance(pl_module, Loop)
        self._show(trainer, pl_module)
        step = trainer.global_step
        if not pl_module.step_is_done or (step % self.every and step != trainer.max_steps):
            return
        # where the weights are dealt out, every process has to help in putting them together
        if not trainer.is_global_zero and pl_module.device_mesh is None:
            return
        with self._spared(f"no look after step {step}", trainer), untouched(self.objective, pl_module.device):
            self._look(step, trainer, pl_module)
        if self._looked is not None and self._looked.values.is_there:
            self._show(trainer, pl_module)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Write what a run that goes on from this checkpoint will not look at again."""
        if self._looked is not None:
            self._show(trainer, pl_module)
            for logger in trainer.loggers:
                logger.save()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the last look."""
        self._show(trainer, pl_module)

    def _look(self, step: int, trainer: pl.Trainer, loop: Loop) -> None:
        """Compute what there is to see, without reading any of it."""
        with whole_weights(self.objective):
            features = self.sample.features(self.objective, loop.device)
        rows, dtype = list[Row](), self.sample.autocast_dtype
        autocast = torch.autocast(loop.device.type, dtype, enabled=dtype is not None)
        if loop.device_mesh is None:  # else a picture that failed in one process would leave the others waiting
            with self._spared(f"no pictures after step {step}", trainer), autocast:
                images = example_images(self.sample.data).to(loop.device)
                rows = make_rows(self.objective, images, self.sample.data)
        self._looked = _Looked(step, Snapshot([features, [row.values for row in rows]]), rows)

    def _show(self, trainer: pl.Trainer, loop: pl.LightningModule) -> None:
        """Measure, log, draw and warn of what a look has brought."""
        looked, self._looked = self._looked, None
        if looked is None or not trainer.is_global_zero:
            return
        assert isinstance(loop, Loop)
        step = looked.step
        with self._spared(f"features after step {step} are not measured", trainer):
            features = looked.values.content()[0]
            self.latest, self.step = quality_of(features), step
            epoch = step / loop.task.plan.steps_per_epoch
            numbers = {name: value for name, value in self.latest.as_dict().items() if value is not None}
            del numbers["num_images"]
            for logger in trainer.loggers:
                logger.log_metrics({**numbers, "epoch": epoch}, step - 1)
            self._warn(step)
        if not looked.titles:
            return
        with self._spared(f"no pictures after step {step}", trainer):
            path, values = self.folder / f"step-{step:08d}.png", looked.values.content()[1]
            draw_sheet([row._replace(values=found) for row, found in zip(looked.titles, values, strict=True)], path)
            log_picture(trainer.loggers, "look", path, step - 1)

    def _warn(self, step: int) -> None:
        """Tell of a collapse once; again where features had recovered."""
        assert self.latest is not None
        collapse = self.latest.collapse()
        if collapse is not None and not self.is_warned:
            self.tell(f"warning: after step {step} {collapse}. {ADVICE.format(folder=self.folder)}")
        self.is_warned = collapse is not None

    @contextmanager
    def _spared(self, what: str, trainer: pl.Trainer) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it is, looking costs no run
            if trainer.is_global_zero:
                reason = " ".join(str(error).split())[:300]
                self.tell(f"warning: {what}: {type(error).__name__}: {reason}")
