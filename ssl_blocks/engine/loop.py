"""The one training loop, as a Lightning module."""

import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from ssl_blocks.engine.checkpoints import FORMAT_VERSION, MARK
from ssl_blocks.engine.optimizers import cosine_weight_decay, warmup_cosine
from ssl_blocks.engine.parallel import one_for_none, shard, sum_over_processes
from ssl_blocks.engine.task import Moment, Portion, Task
from ssl_blocks.engine.watch import LossWatch
from ssl_blocks.randomness import mix_seed, seeded_generator


class Loop(pl.LightningModule):
    """Train a task, seeded per step.

    Each batch draws from a generator made of (seed, process rank, batch number), so that a resumed run draws what
    the uninterrupted one would have drawn. Losses are averaged over what counts in a whole step: in all processes,
    in all accumulated batches.

    Args:
        task: what is trained; its model is registered as ``model``.
        folder: where the run's checkpoints lie; ``None`` where it keeps none.
        world_size: number of processes.
    """

    def __init__(self, task: Task, *, folder: Path | None = None, world_size: int = 1) -> None:
        super().__init__()
        self.task, self.model, self.world = task, task.model, world_size
        self.watch = LossWatch(folder, task.advice)
        self.resumed_step = 0
        self._seconds_before: float = 0.0
        self._started: float | None = None
        self.counted: Tensor | None = None  # of the step under way: summed loss, what it is to be divided by
        self.unit = torch.ones(())  # mean count of the first part of the step in all processes
        self.parts_done = 0
        self.latest: dict[str, Any] = {}  # what the last step is worth logging for
        self.losses: list[float] = []  # mean of every epoch that is over
        self._epoch_loss: Tensor | float = 0.0  # sum over the steps of the epoch under way

    @property
    def steps_left(self) -> int:
        """Optimizer steps that are still to be done where the run goes on."""
        return self.task.plan.num_steps - self.resumed_step

    def continue_from(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Know where the run stands; the weights come later, with the optimizer."""
        ours = {name: tuple(value.shape) for name, value in self.state_dict().items()}
        theirs = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
        differing = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
        if differing:
            name = differing[0]
            raise ValueError(
                f"{path} does not fit the configuration: {name} has shape {theirs.get(name)} there, "
                f"expected {ours.get(name)} ({len(differing)} such)"
            )
        mark, facts = checkpoint[MARK], self.task.facts()
        changed = [
            f"{name}={facts.get(name)!r} (the run has {mark['facts'].get(name)!r})"
            for name in {**facts, **mark["facts"]}
            if not _same(facts.get(name), mark["facts"].get(name))
        ]
        if changed:
            raise ValueError(f"{path} must be gone on with as it began, but now {', '.join(changed)}")
        self.resumed_step, self._seconds_before = mark["step"], mark["seconds"]
        self.losses, self._epoch_loss = list(mark["losses"]), mark["epoch_loss"]

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
        return self.parts_done == self.task.plan.accumulate

    def configure_model(self) -> None:
        """Deal the parameters out where the strategy has a mesh of processes for it."""
        if self.device_mesh is not None:
            shard(self.model, self.device_mesh["data_parallel"])

    def train_dataloader(self) -> Iterable[Any]:
        """Batches from the step on at which the run stands."""
        local_size = self.trainer.num_devices
        return self.task.batches(
            Portion(self.trainer.global_step, self.global_rank, self.world, local_size, self.device)
        )

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        """Compute the loss: a sum for now, see `on_before_optimizer_step`."""
        step, plan = self.global_step, self.task.plan
        number = batch_index % plan.accumulate
        if number == 0:
            self.task.before_step(plan.progress(step))
            self.counted = None
        self.parts_done = number + 1
        key = (plan.seed, self.global_rank, step * plan.accumulate + number)
        torch.manual_seed(mix_seed(*key, 1))  # dropout knows no generator
        moment = Moment(step, number * self.world + self.global_rank, seeded_generator(self.device, *key))
        out = self.task.loss(batch, moment)
        count = out.count.detach().to(out.mean.dtype)
        if number == 0:
            self.unit = one_for_none(sum_over_processes(count.clone()) / self.world)
        counted = torch.stack([out.mean.detach() * count, count])
        self.counted = counted if self.counted is None else self.counted + counted
        self.latest = dict(out.metrics)
        loss: Tensor = out.mean * (count / self.unit)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide by what counts in the whole step, known only now; see to it that the loss is a number."""
        assert self.counted is not None
        plan = self.task.plan
        total, count = sum_over_processes(self.counted)
        self.watch.see(total, self.global_step)
        # gradients are means over processes and accumulated batches of sums: exactly 1 where parts count alike
        count = one_for_none(count)
        scale = self.unit * self.world * plan.accumulate / count
        for parameter in self.parameters():
            if parameter.grad is not None:
                grad = parameter.grad
                (grad.to_local() if hasattr(grad, "to_local") else grad).mul_(scale.to(grad.dtype))
        loss = total / count
        self._epoch_loss = self._epoch_loss + loss.double()
        if (self.global_step + 1) % plan.steps_per_epoch == 0:
            self.losses.append(float(self._epoch_loss) / plan.steps_per_epoch)
            self._epoch_loss = 0.0
        self.latest = {
            "loss": loss,
            "lr": max(group["lr"] for group in optimizer.param_groups),
            "epoch": (self.global_step + 1) / plan.steps_per_epoch,
            **self.latest,
        }

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then let the task follow the new weights."""
        self._set_weight_decay()
        super().optimizer_step(*args, **kwargs)
        self.task.after_step()

    def configure_optimizers(self) -> Any:
        """AdamW, fused where the parameters lie on a GPU, with warm-up and cosine."""
        plan, on_gpu = self.task.plan, all(p.is_cuda for p in self.model.parameters())
        optimizer = torch.optim.AdamW(self.task.groups(), lr=plan.lr, betas=plan.betas, fused=on_gpu)
        schedule = warmup_cosine(
            optimizer,
            num_steps=plan.num_steps,
            warmup_steps=plan.warmup_steps,
            min_lr=plan.min_lr,
            warmup_start=plan.warmup_start,
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
            "losses": self.losses,
            "epoch_loss": float(self._epoch_loss),
            "facts": self.task.facts(),
        }

    def _set_weight_decay(self) -> None:
        """Follow the schedule, which knows the step alone, in the group that decays: the first one."""
        plan = self.task.plan
        if plan.weight_decay_end is not None:
            decay = cosine_weight_decay(
                plan.weight_decay, plan.weight_decay_end, step=self.global_step, num_steps=plan.num_steps
            )
            self.trainer.optimizers[0].param_groups[0]["weight_decay"] = decay


def _same(one: Any, other: Any) -> bool:
    """Whether two plain values are equal, numbers but for rounding: sums differ from machine to machine."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-5)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
