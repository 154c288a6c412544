"""The one training loop, as a Lightning module."""

import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ssl_blocks.engine.bits import tell_of_bits, what_bits_depend_on
from ssl_blocks.engine.checkpoints import FORMAT_VERSION, MARK, differing_facts, numbers_of
from ssl_blocks.engine.gradients import decay, finish_gradients, name_of, unbounded
from ssl_blocks.engine.graph import CudaCapture, StepGraph
from ssl_blocks.engine.late import Later
from ssl_blocks.engine.masters import MasterAdamW, rounded_weights
from ssl_blocks.engine.optimizers import cosine_weight_decay
from ssl_blocks.engine.parallel import Machine, one_for_none, repeated_blocks, shard, sum_over_processes
from ssl_blocks.engine.replay import keep_step
from ssl_blocks.engine.task import Moment, Portion, Task
from ssl_blocks.engine.watch import Verdict, Watch
from ssl_blocks.randomness import mix_seed

HERE = Machine()


class Loop(pl.LightningModule):
    """Train a task, seeded per step.

    Each batch draws from a generator made of (seed, process rank, batch number), so that a resumed run draws what
    the uninterrupted one would have drawn. Losses are averaged over what counts in a whole step: in all processes,
    in all accumulated batches.

    Where `Machine.graph` asks for it, a step is one function of tensors from batch to new weights, which a GPU captures
    (`StepGraph`); else Lightning calls its parts. Both compute the same. The run's checkpoints lie in ``folder``,
    and ``tell`` is called with lines for the user.
    """

    def __init__(
        self, task: Task, machine: Machine = HERE, *, folder: Path | None = None, tell: Callable[[str], None] = print
    ) -> None:
        super().__init__()
        if machine.strategy == "fsdp" and not repeated_blocks(task.model):
            name = type(task.model).__name__
            raise ValueError(f"trainer.strategy='fsdp' needs alike blocks to deal out, but {name} has no two: use ddp")
        self.task, self.model, self.machine, self.tell = task, task.model, machine, tell
        self.world = machine.processes.world_size
        self.folder = folder
        self.watch = Watch(folder, task.advice)
        self.watch.keep, self.watch.name = partial(keep_step, self), partial(name_of, self)
        self.verdict = Verdict(torch.zeros(1), ())  # of the step under way
        self.halted: Tensor | None = None  # on a GPU: whether a step was bad, after which weights stay as they are
        self.unbounded: frozenset[str] = frozenset()  # what is not finite from the beginning, and is not trained
        self.resumed_step = 0
        self._seconds_before: float = 0.0
        self._started: float | None = None
        self.graph: StepGraph | None = None
        self._generator: torch.Generator | None = None  # seeded anew for every batch
        self._rates: list[Tensor] = []  # of groups, and what decay leaves: places on a GPU that kernels read
        self._kept: Tensor | float = 1.0  # by weight decay, where that follows a schedule
        self.lr = 0.0
        self.counted: Tensor | None = None  # of the step under way: summed loss, what it is to be divided by
        self.unit = torch.ones(())  # mean count of the first part of the step in all processes
        self.parts_done = 0
        self.latest: dict[str, Any] = {}  # what the last step is worth logging for
        self.losses: list[float] = []  # mean of every epoch that is over
        self._later = Later()  # an epoch's mean, which is read when the GPU has got there
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
        mark = checkpoint[MARK]
        changed = differing_facts(self.task.facts(), mark["facts"])
        if changed:
            raise ValueError(f"{path} must be gone on with as it began, but now {', '.join(changed)}")
        self.resumed_step, self._seconds_before = mark["step"], mark["seconds"]
        self.losses, self._epoch_loss = list(mark["losses"]), mark["epoch_loss"]
        tell_of_bits(what_bits_depend_on(self.machine), mark.get("bits"), self.tell)

    @property
    def seconds(self) -> float:
        """How long training took, over all parts of an interrupted run."""
        return self._seconds_before + (time.perf_counter() - self._started if self._started is not None else 0.0)

    def on_train_start(self) -> None:
        """Look at the clock, and see whether steps can be captured."""
        self._started = time.perf_counter()
        schedules: list[Any] = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        for schedule in schedules:  # the run may be a longer one now
            schedule.step_update(self.global_step)
        self.unbounded = unbounded(self)
        reason = self._why_not_captured()
        if self.machine.graph != "off" and reason is None:
            self.graph = StepGraph(self._whole_step, self.capture(), baked=self.task.baked, tell=self.tell)
        elif self.global_rank == 0 and (self.machine.graph == "on" or (self.machine.graph == "auto" and self.on_gpu)):
            self.tell(f"note: steps are not captured as a CUDA graph: {reason}")

    def capture(self) -> CudaCapture | None:
        """What records steps: nothing on a CPU."""
        return CudaCapture(self.device, [self._seeded()]) if self.on_gpu else None

    @property
    def on_gpu(self) -> bool:
        """Whether this process computes on one."""
        return self.device.type == "cuda"

    def _why_not_captured(self) -> str | None:
        """What stands in the way of steps as one function, if anything."""
        if self.machine.graph == "auto" and not self.on_gpu:
            return f"device {self.device} has none"
        if self.world > 1:
            return f"{self.world} processes talk to each other amid a step"
        if self.task.plan.accumulate > 1:
            return f"a step has {self.task.plan.accumulate} parts"
        return None if self.task.baked() is not None else f"{type(self.task).__name__} does not name what it bakes in"

    def on_train_end(self) -> None:
        """Look at the clock again."""
        self._later.catch_up()
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

    def training_step(self, batch: Any, batch_index: int) -> Tensor | None:
        """Compute the loss: a sum for now, see `on_before_optimizer_step`; or do the whole step, and return nothing."""
        step, plan = self.global_step, self.task.plan
        number = batch_index % plan.accumulate
        if number == 0:
            self.task.before_step(plan.progress(step))
            self.counted = None
        self.parts_done = number + 1
        key = (plan.seed, self.global_rank, step * plan.accumulate + number)
        torch.manual_seed(mix_seed(*key, 1))  # dropout knows no generator
        moment = Moment(step, number * self.world + self.global_rank, self._seeded(*key))
        if self.graph is None:
            return self._part(batch, moment)
        self.counted, self.latest, self.verdict = self.graph(batch)
        self._note()
        return None

    def _seeded(self, *key: int) -> torch.Generator:
        """The generator for a batch: always the same one, for a captured step reads its seed from there."""
        if self._generator is None:
            self._generator = torch.Generator(self.device)
        return self._generator.manual_seed(mix_seed(*key))

    def _part(self, batch: Any, moment: Moment) -> Tensor:
        """Loss of a part of a step, as a share of the sum over the step."""
        out = self.task.loss(batch, moment)
        count = out.count.detach().to(out.mean.dtype)
        self.latest = dict(out.metrics)
        counted = torch.stack([out.mean.detach() * count, count])
        if self.counted is None:
            self.counted = counted
            if self._has_parts:
                self.unit = one_for_none(sum_over_processes(count.clone()) / self.world)
        else:
            self.counted = self.counted + counted
        return out.mean * (count / self.unit) if self._has_parts else out.mean

    @property
    def _has_parts(self) -> bool:
        """Whether a step is more than one batch of one process: else its loss is divided already."""
        return self.world * self.task.plan.accumulate > 1

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Finish the gradients, and see to it that loss and gradients are numbers before weights change."""
        decaying = self._finish_gradients()
        self._note()
        decay(decaying, self._kept, self.halted)

    def _finish_gradients(self) -> list[nn.Parameter]:
        """Make gradients those of the whole step; return the parameters that decay by the schedule."""
        optimizer, plan = self.optimizer, self.task.plan
        for parameter in self.task.frozen():
            parameter.grad = None
        if isinstance(optimizer, MasterAdamW):
            optimizer.take_gradients()
        groups = [[p for p in group["params"] if p.grad is not None] for group in optimizer.param_groups]
        assert self.counted is not None
        self.counted, self.verdict = finish_gradients(
            [parameter for group in groups for parameter in group],
            self.counted,
            sum_of=self.unit * self.world * plan.accumulate if self._has_parts else None,
            clip=plan.clip_grad,
            halted=self.halted,
            watched=self.machine.autocast_dtype != torch.float16,  # whose scaler looks at gradients itself
        )
        return groups[0] if plan.weight_decay_end is not None else []

    def _note(self) -> None:
        """Remember what the step came to."""
        assert self.counted is not None
        plan, (total, count) = self.task.plan, self.counted
        self.watch.see(self.verdict, self.global_step)
        loss = total / one_for_none(count)
        self._epoch_loss = self._epoch_loss + loss.double()
        if (self.global_step + 1) % plan.steps_per_epoch == 0:
            self._later.catch_up()
            found = {"mean": self._epoch_loss / plan.steps_per_epoch}
            self._later.use(found, lambda found: self.losses.append(found["mean"]))
            self._epoch_loss = 0.0
        epoch = (self.global_step + 1) / plan.steps_per_epoch
        self.latest = {"loss": loss, "lr": self.lr, "epoch": epoch, **self.latest}

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Step, then let the task follow the new weights."""
        self._set_rates()
        if self.graph is None:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
            self.task.after_step()
        elif optimizer_closure is not None:
            optimizer_closure()  # does all of it

    def _whole_step(self, batch: Any) -> tuple[Tensor, dict[str, Any], Verdict]:
        """What Lightning does one after the other, in one function: from a batch to new weights."""
        optimizer = self.optimizer
        optimizer.zero_grad()
        self.counted = None
        loss = self._part(batch, Moment(self.global_step, 0, self._generator))  # type: ignore[arg-type]
        with torch.autocast(self.device.type, enabled=False):
            loss.backward()  # type: ignore[no-untyped-call]
            decay(self._finish_gradients(), self._kept, self.halted)
            optimizer.step()
            self.task.after_step()
        assert self.counted is not None
        return self.counted, self.latest, self.verdict

    optimizer = property(lambda self: self.trainer.optimizers[0])

    def configure_optimizers(self) -> Any:
        """AdamW, fused where the parameters lie on a GPU, with warm-up and cosine."""
        plan, groups = self.task.plan, self.task.groups()
        if plan.weight_decay_end is not None:
            groups[0]["weight_decay"] = 0.0  # a kernel of the optimizer would take a number that never changes
        settings: dict[str, Any] = {"lr": plan.lr, "betas": plan.betas, **self._kernels()}
        optimizer = (
            MasterAdamW(groups, rounded_weights(self.model), **settings)
            if self.machine.pure
            else torch.optim.AdamW(groups, **settings)
        )
        if self.fused and self.world == 1:
            self._rates = [torch.zeros((), device=self.device) for _ in groups]
            self._kept = torch.ones((), device=self.device)
        if self.fused and self.device_mesh is None and self.machine.autocast_dtype != torch.float16:
            self.halted = torch.zeros((), device=self.device)
            vars(optimizer)["found_inf"] = self.halted  # where it is 1, the kernel changes nothing
        schedule = {"scheduler": plan.schedule_of(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    @property
    def fused(self) -> bool:
        """Whether AdamW is one kernel, and reads its rates from tensors."""
        return self.machine.on_gpu

    def _kernels(self) -> dict[str, bool]:
        """How AdamW computes, on this machine."""
        return {"fused": self.fused, "capturable": self.fused and self.machine.graph != "off"}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Compute as this machine does, whatever wrote the checkpoint: groups of an optimizer say how it computed."""
        for state in checkpoint["optimizer_states"]:
            for group in state["param_groups"]:
                group.update(self._kernels())

    def _set_rates(self) -> None:
        """Follow the schedules: numbers on CPU, and on a GPU places that are filled without waiting for it."""
        plan, groups = self.task.plan, self.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        self.lr = max(rates)
        if plan.weight_decay_end is not None:
            decay = cosine_weight_decay(
                plan.weight_decay, plan.weight_decay_end, step=self.global_step, num_steps=plan.num_steps
            )
            kept = 1 - rates[0] * decay
            self._kept = self._kept.fill_(kept) if isinstance(self._kept, Tensor) else kept
        for group, place, rate in zip(groups, self._rates, rates, strict=False):
            group["lr"] = place.fill_(rate)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Set the rate of the step to come."""
        scheduler.step_update(self.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Mark the checkpoint as ours; never save what is no finite number."""
        self.watch.check()
        values = {name: x for name, x in numbers_of(checkpoint).items() if name not in self.unbounded}
        self.watch.check_saved(values, total=lambda x: sum_over_processes(x.to(self.device)), step=self.global_step)
        self._later.catch_up()
        if isinstance(self.optimizer, MasterAdamW):
            checkpoint["state_dict"] = self.optimizer.whole(checkpoint["state_dict"])
        checkpoint[MARK] = {
            "format_version": FORMAT_VERSION,
            "step": self.global_step,
            "seconds": self.seconds,
            "losses": self.losses,
            "epoch_loss": float(self._epoch_loss),
            "facts": self.task.facts(),
            "bits": what_bits_depend_on(self.machine),
            "configuration": self.task.configuration(),
            "not_finite": sorted(self.unbounded),
        }

    def give_back_weights(self) -> None:
        """Leave the weights in the precision in which they came."""
        for optimizer in self.trainer.optimizers:
            if isinstance(optimizer, MasterAdamW):
                optimizer.give_back()
