"""An objective and its data as a task of the training loop."""

from collections.abc import Collection, Hashable, Iterable
from functools import cached_property
from typing import Any

import torch
from jaxtyping import UInt
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from ssl_blocks.data import ImageData, share_of_cores, to_float, train_loader
from ssl_blocks.engine.settings import values_of
from ssl_blocks.engine.task import CountedLoss, Moment, Plan, Portion, Task
from ssl_blocks.modes import buffers_kept, modes_kept
from ssl_blocks.noise import Pure
from ssl_blocks.objectives import Objective
from ssl_blocks.objectives.life_cycle import find_parts, followers
from ssl_blocks.objectives.objective import seen_by
from ssl_blocks.pretrain.config import RunConfig
from ssl_blocks.randomness import seeded_generator
from ssl_blocks.values import Progress

WORTH_COMPILING = 5_000  # steps, from which on compiling takes less time than it saves


class PretrainModule(Task):
    """Feed an objective with augmented batches.

    Args:
        objective: what is trained.
        data: images.
        config: sizes and rates.
    """

    replay = "; --replay FILE does the step again, and tells where it went wrong"
    advice = "A smaller optimizer.base_lr, a longer warm-up, optimizer.clip_grad or trainer.precision=fp32 may help"

    def __init__(self, objective: Objective, data: ImageData, config: RunConfig) -> None:
        self.objective = self.model = objective
        self.data, self.config = data, config
        self.augment = config.augmentation(data.shape, data.mean, data.std)
        self.compute: Any = objective
        self.prepare: Any = self._prepare
        if config.trainer.compile:
            # as it is trained, and not as it is tried, scored and drawn: on other devices and in other shapes
            how: Any = {"dynamic": False, "mode": config.trainer.compile_mode}
            self.compute = torch.compile(objective, **how)
            pure = Pure(self._prepare)
            prepare = pure.compile(**how)
            self.prepare = lambda batch, *, generator: prepare(pure.noise(batch, generator=generator), batch)

    def check(self) -> None:
        """Try everything once on two images, on CPU.

        Raises:
            ValueError: if a part does not fit another, the data is too small for a batch, the loss is no scalar, or no
                gradient reaches a parameter that is to be trained.
        """
        batch = self.config.optimizer.batch_size
        if batch > len(self.data.train):
            raise ValueError(f"optimizer.batch_size={batch} must not exceed the {len(self.data.train)} training images")
        some = self.data.train.read(torch.arange(min(8, len(self.data.train))))[:2]  # unreadable ones may be left out
        plain = to_float(some, self.data.mean, self.data.std)
        generator = seeded_generator("cpu", self.config.seed)
        images = seen_by(self.objective, self.augment(plain, generator=generator))
        draw = self.objective.draw(images, generator=generator)
        # in evaluation mode, for statistics of norms are for training images
        unused = self._without_gradient(images, draw, training=False)
        if unused:  # what dropped layers and the like leave out may differ
            unused &= self._without_gradient(images, draw, training=True)
        if unused:
            names = [name for name, _ in self.objective.named_parameters() if name in unused]
            shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            raise ValueError(
                f"no gradient reaches {len(names)} parameters of {type(self.objective).__name__}, which would stay as "
                f"they are: {shown}. Leave them out, or freeze them by requires_grad_(False)"
            )

    def _without_gradient(self, images: Any, draw: Any, *, training: bool) -> set[str]:
        """Names of trained parameters that the loss does not depend on."""
        kept = buffers_kept(self.objective), modes_kept(self.objective, training=training)
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), kept[0], kept[1]:
            loss = self.objective(images, draw).loss
        if loss.ndim:
            name = type(self.objective).__name__
            raise ValueError(f"the loss of {name} must be a scalar, got shape {tuple(loss.shape)}")
        used = reached(loss)
        return {name for name, p in self.objective.named_parameters() if p.requires_grad and id(p) not in used}

    def remarks(self, world_size: int, *, on_gpu: bool = False) -> list[str]:
        """A warm-up that is cut, a long run that is not compiled, and what statistics of batches mean in processes."""
        images, accumulate = self.config.optimizer.batch_size, self.config.optimizer.accumulate
        alone = images // (world_size * accumulate)
        kinds = {"per_process": (world_size * accumulate > 1, alone), "per_part": (accumulate > 1, alone * world_size)}
        remark = self.config.optimizer.warmup_remark(self.config.trainer.epochs)
        found = [] if remark is None else [remark]
        if on_gpu and not self.config.trainer.compile and self.plan.num_steps >= WORTH_COMPILING:
            found.append("trainer.compile=true may halve the time of a step, for a minute or two of compiling before")
        for kind, (matters, number) in kinds.items():
            names = sorted({type(part).__name__ for part in find_parts(self.objective) if _has(part, kind)})
            if matters and names:
                found.append(f"batch statistics of {', '.join(names)} are of {number} images each, not of the {images}")
        return found

    @cached_property
    def plan(self) -> Plan:  # type: ignore[override]
        """Steps and rates, as configured for this many images."""
        settings, epochs = self.config.optimizer, self.config.trainer.epochs
        steps = len(self.data.train) // settings.batch_size
        return Plan(
            steps_per_epoch=steps,
            epochs=epochs,
            lr=settings.lr,
            seed=self.config.seed,
            warmup_steps=settings.warmup_steps(steps_per_epoch=steps, epochs=epochs),
            **values_of(settings, *(name for name in type(settings).model_fields if name in Plan.__annotations__)),
        )

    def batches(self, portion: Portion) -> Iterable[UInt[Tensor, "b c h w"]]:
        """Batches of images of 8 or 16 bits."""
        settings, workers, shape = self.config.optimizer, self.config.data.workers, self.data.shape
        return train_loader(
            self.data.train,
            batch_size=settings.batch_size,
            accumulate=settings.accumulate,
            epochs=self.config.trainer.epochs,
            first_step=portion.first_step,
            seed=self.config.seed,
            rank=portion.rank,
            world_size=portion.world_size,
            crop=self.augment.file_crop((shape.height, shape.width)),
            workers=share_of_cores(portion.local_size) if workers is None else workers,
            device=portion.device,
        )

    def loss(self, batch: UInt[Tensor, "b c h w"], moment: Moment) -> CountedLoss:
        """Augment, draw, and compute the loss."""
        images, draw = self.prepare(batch, generator=moment.generator)
        out = self.compute(images, draw)
        return CountedLoss(out.loss, torch.as_tensor(out.divisor, device=out.loss.device), out.metrics)

    def _prepare(self, batch: UInt[Tensor, "b c h w"], *, generator: torch.Generator | None = None) -> tuple[Any, Any]:
        """What the objective sees of a batch, and its choices."""
        plain = to_float(batch, self.data.mean, self.data.std)
        augment = self.augment.finish if self.data.is_streamed else self.augment
        images = seen_by(self.objective, augment(plain, generator=generator))
        return images, self.objective.draw(images, generator=generator)

    def no_weight_decay(self) -> Collection[str]:
        """What the objective names."""
        return self.objective.no_weight_decay()

    def before_step(self, progress: Progress) -> None:
        """Tell the objective."""
        self.objective.before_step(progress)

    def after_step(self) -> None:
        """Tell the objective."""
        self.objective.after_step()

    def frozen(self) -> Iterable[nn.Parameter]:
        """Those of a weight with a parametrization that says of itself that it is not ``is_open``, such as a gate."""
        return [
            p for weight in self._gated if not all(gate.is_open for gate in _gates(weight)) for p in weight.parameters()
        ]

    @cached_property
    def _gated(self) -> list[ParametrizationList]:
        return [part for part in self.objective.modules() if isinstance(part, ParametrizationList) and _gates(part)]

    def baked(self) -> tuple[Hashable, ...]:
        """Plain attributes of the parts that follow schedules or weights."""
        return tuple(
            f"{type(part).__name__}.{name}={value}"
            for part in followers(self.objective)
            for name, value in vars(part).items()
            if isinstance(value, bool | int | float | str)
        )

    def configuration(self) -> dict[str, Any]:
        """The configuration, as ``config.yaml`` has it."""
        return self.config.model_dump(mode="json")

    def facts(self) -> dict[str, Any]:
        """What images a run saw: schedule and statistics depend on them."""
        data = self.data
        numbers = {"training images": len(data.train), "their mean": list(data.mean), "their std": list(data.std)}
        kind = {"recipe": type(self.config).__name__, "image shape": list(data.shape)}
        return kind | numbers | {"their fingerprint": data.fingerprint}


def _gates(weight: ParametrizationList) -> list[Any]:
    return [part for part in weight if hasattr(part, "is_open")]


def reached(loss: Tensor) -> set[int]:
    """``id`` of all leaves that a loss depends on, as its graph has them; nothing is computed."""
    pending, seen, found = [loss.grad_fn], set(), set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        pending += [function for function, _ in node.next_functions]
    return found


def _has(part: object, kind: str) -> bool:
    """Whether a part has such statistics; batch norms never say so themselves."""
    norms = nn.SyncBatchNorm if kind == "per_part" else nn.modules.batchnorm._BatchNorm
    synchronised = kind == "per_process" and isinstance(part, nn.SyncBatchNorm)
    return bool(getattr(part, kind, False)) or (isinstance(part, norms) and not synchronised)
