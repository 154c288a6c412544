"""Training: a task, a machine, and what is written meanwhile."""

import logging
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from ssl_blocks.data import UnreadableImageError
from ssl_blocks.engine.checkpoints import check_checkpoint, last_good, list_checkpoints, read_checkpoint
from ssl_blocks.engine.errors import Interruption, RunStopped, from_outside
from ssl_blocks.engine.lock import locked
from ssl_blocks.engine.logs import MetricsFile
from ssl_blocks.engine.loop import Loop
from ssl_blocks.engine.parallel import Machine, choose_strategy, environment_plugins
from ssl_blocks.engine.progress import RichRunProgress, StepLog
from ssl_blocks.engine.rank import is_rank_zero
from ssl_blocks.engine.saving import AtomicCheckpointIO, Checkpoints, StopOnSignal
from ssl_blocks.engine.task import Task
from ssl_blocks.modes import modes_kept
from ssl_blocks.quiet import quiet
from ssl_blocks.text import terminal

PRECISIONS: dict[torch.dtype | None, Any] = {None: "32-true", torch.bfloat16: "bf16-mixed", torch.float16: "16-mixed"}


@dataclass(frozen=True)
class Record:
    """What a run writes while it trains: logs, and checkpoints some epochs apart and after the last step.

    ``loggers`` are open; ``None``: ``metrics.csv``. The newest ``keep`` checkpoints stay, and ``hint`` says how to go
    on where the run is stopped.
    """

    folder: Path
    hint: str = "go on with resume=True"
    checkpoint_every: float = 1.0
    keep: int = 2
    loggers: Sequence[Logger] | None = None


def train(
    task: Task, machine: Machine, *, folder: Path | None = None, resume: Path | bool = False, title: str | None = None
) -> tuple[float, ...]:
    """Train a task's model in place; torch's random state and all modes are put back.

    Args:
        task: what is trained.
        machine: where; the model is there afterwards.
        folder: of checkpoints and ``metrics.csv``; ``None`` writes nothing.
        resume: ``True`` goes on from the newest checkpoint in the folder, if there is one; a path from that one.
        title: what a progress bar is called; ``None`` shows none.

    Returns:
        Mean loss of every epoch.

    Raises:
        FileExistsError: if the folder holds checkpoints and ``resume`` is ``False``.
        ValueError: if a checkpoint is damaged or another task's, or ``resume`` is asked for without a folder.
        RunStopped: on a signal, a loss that is no number, files that cannot be written, or another run there.
    """
    if folder is None and resume:
        raise ValueError(f"resume={resume} needs the folder of the run, but folder=None")
    there = [] if folder is None else list_checkpoints(folder)
    if there and not resume:
        raise FileExistsError(f"folder={str(folder)!r} holds checkpoints already: give another, or resume=True")
    checkpoint = resume if isinstance(resume, Path) else next(iter(there), None)
    loop = Loop(task, machine, folder=folder)
    if checkpoint is not None:
        loop.continue_from(check_checkpoint(checkpoint), checkpoint)
    callbacks = [] if title is None else [RichRunProgress(terminal(quiet=not is_rank_zero()), title)]
    record = None if folder is None else Record(folder)
    gpus = [torch.device(machine.device)] if machine.on_gpu else []
    alone, modes = locked(folder), modes_kept(task.model, training=True)
    with ending_in_order(folder), alone, modes, torch.random.fork_rng(devices=gpus):
        fit(loop, record=record, checkpoint=checkpoint, callbacks=callbacks)
    task.model.to(machine.device)
    return tuple(loop.losses)


def fit(
    loop: Loop, *, record: Record | None = None, checkpoint: Path | None = None, callbacks: Sequence[pl.Callback] = ()
) -> None:
    """Do the steps that are left; what there is to train lies on the CPU afterwards.

    The loop knows the checkpoint already, see `Loop.continue_from`; callbacks come before one is saved.
    """
    if checkpoint is not None and not loop.steps_left:
        loop.load_state_dict(read_checkpoint(checkpoint)["state_dict"])
        return
    if loop.world == 1:
        rank_zero_only.rank = 0  # type: ignore[attr-defined]  # whatever rank was left over in the environment
    with _quiet_lightning(), _matmul_precision("high" if loop.machine.tf32 else "highest"):
        trainer = _trainer(loop, record, callbacks)
        try:
            trainer.fit(loop, ckpt_path=None if checkpoint is None else str(checkpoint), weights_only=True)
        except SystemExit as end:  # what Lightning makes of Ctrl-C
            raise (end.__context__ if isinstance(end.__context__, KeyboardInterrupt) else end) from None
        finally:
            loop.give_back_weights()


@contextmanager
def ending_in_order(folder: Path | None, *, advice: str = "") -> Iterator[None]:
    """Turn what happens to a run from outside into its end, which says what is left; without a folder it passes.

    ``advice`` is what may help where an image cannot be read.
    """
    try:
        yield
    except Interruption as signalled:  # outside training, which answers signals itself
        if folder is None:
            raise
        name = signal.Signals(signalled.number).name
        raise RunStopped(
            f"stopped by {name} outside training; {last_good(folder)}; go on with --resume {folder}",
            exit_code=128 + signalled.number,
        ) from None
    except Exception as error:
        reason = f"{error}{advice}" if isinstance(error, UnreadableImageError) else from_outside(error)
        if folder is None or reason is None:
            raise
        stop = RunStopped(f"the run stops: {reason}; {last_good(folder)}")
        if not is_rank_zero():
            print(f"error in another process: {stop}", file=sys.stderr, flush=True)
        raise stop from error


def _trainer(loop: Loop, record: Record | None, callbacks: Sequence[pl.Callback]) -> pl.Trainer:
    plan, machine = loop.task.plan, loop.machine
    device = torch.device(machine.device)
    loggers: list[Logger] = []
    plugins = environment_plugins()
    if record is not None:
        files = AtomicCheckpointIO(record.keep, beside=device.type == "cuda")
        loop.watch.before_telling = files.join
        plugins.append(files)
        every = max(1, round(record.checkpoint_every * plan.steps_per_epoch))
        checkpoints = Checkpoints(record.folder, files, every=every)
        log = StepLog(max(1, min(50, plan.steps_per_epoch)))
        callbacks = [log, *callbacks, checkpoints, StopOnSignal(checkpoints, record.hint)]
        metrics, given = record.folder / "metrics.csv", record.loggers
        loggers += [MetricsFile(metrics, resumed_step=loop.resumed_step)] if given is None else given
    alone = machine.processes.world_size == 1
    return pl.Trainer(
        default_root_dir=None if record is None else record.folder,
        max_epochs=-1,
        max_steps=plan.num_steps,
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=[device.index] if alone and device.index is not None else machine.processes.devices,
        num_nodes=machine.processes.num_nodes,
        strategy=choose_strategy(machine),
        plugins=plugins,
        precision=PRECISIONS[machine.autocast_dtype],
        accumulate_grad_batches=plan.accumulate,
        logger=loggers,
        callbacks=[*callbacks],
        log_every_n_steps=1,  # StepLog decides
        enable_checkpointing=False,  # Checkpoints does it, so that a killed run can go on
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,  # batches are dealt out already
    )


@contextmanager
def _matmul_precision(name: str) -> Iterator[None]:
    """Let products of float32 matrices be rounded, or not, and put back what was chosen before."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence what does not concern the user here: loader workers, hardware notes, deprecations of its own."""
    with (
        quiet("pytorch_lightning", logging.WARNING),
        quiet("lightning_fabric", logging.WARNING),
        warnings.catch_warnings(),
    ):
        for message in (
            ".*does not have many workers.*",
            ".*LeafSpec.*is deprecated.*",
            ".*module\\(s\\) in eval mode at the start of training.*",  # a teacher is
            ".*`training_step` returned `None`.*",  # where it has done the whole step
            ".*constructed with capturable=True.*",  # steps before one is captured
            ".*your dataloader is not resumable.*",  # it starts at the step at which the run stands
        ):
            warnings.filterwarnings("ignore", message=message)
        yield
