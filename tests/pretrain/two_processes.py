"""Train a few steps in as many processes as torchrun started, and write down losses, gradients and weights.

Every image gets the draw and the augmentation (none) that it would get in a single process with the whole batch, so
that the outcome should be the same. Run by tests/two_processes.py.
"""

from pathlib import Path

import torch
import torch.distributed as dist

from ssl_blocks import Serialization
from ssl_blocks.engine import started_processes
from ssl_blocks.evaluation import FinetuneSettings
from ssl_blocks.pretrain import Run
from ssl_blocks.randomness import seeded_generator
from ssl_blocks.recipes.randsac import assemble
from tests.evaluation.test_finetune import STATISTICS, bright_and_dark, finetuned, tiny
from tests.pretrain.small import Untouched, config

SCORED = ["--trainer.score=true", "--trainer.look_every=1"]
BLOBS = ["--segments.kind=blob", "--segments.counts=[4]"]
CASES = {
    "blobs": [*BLOBS, *SCORED],
    "blobs-sharded-accumulated": [*BLOBS, "--trainer.strategy=fsdp", "--optimizer.accumulate=2", *SCORED],
}
OPTIONS = ["--trainer.epochs=2", "--data.max_train=96", "--optimizer.clip_grad=0.5", "--trainer.precision=fp32"]
OPTIONS += ["--trainer.checkpoint_every=2"]


def build(config, data):
    objective = assemble(config, data)
    draw, state = objective.draw, {"step": 0, "part": 0, "counts": []}

    def before_step(progress) -> None:
        state.update(step=progress.step, part=0)

    def draw_for_all(images, *, generator=None):
        """Draw for the whole batch of the step, and keep what belongs to these images."""
        world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
        if not torch.is_grad_enabled():  # a first try, or figures
            return draw(images, generator=generator)
        parts = config.optimizer.accumulate
        whole = draw(
            images.new_zeros(world * parts * len(images), *images.shape[1:]),
            generator=seeded_generator("cpu", 1, state["step"]),
        )
        first = (state["part"] * world + rank) * len(images)
        state["part"] += 1
        mine = slice(first, first + len(images))
        state["counts"].append(int((whole.step[mine] > 0).sum()))
        return Serialization(whole.order[mine], whole.step[mine], whole.step_sizes)

    def after_step() -> None:
        if state["step"] == 0:
            objective.first_gradients = {
                name: whole_tensor(p.grad) for name, p in objective.named_parameters() if p.grad is not None
            }

    objective.before_step, objective.draw, objective.after_step = before_step, draw_for_all, after_step
    objective.counts = state["counts"]
    return objective


def whole_tensor(value: torch.Tensor) -> torch.Tensor:
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().clone()


def train(folder: Path, name: str, *options: str) -> dict:
    """Do one run; return its losses, first gradients and counts of predicted tokens."""
    run = Run.prepare(config(folder, *OPTIONS, f"--name={name}", *options), build)
    run.module.augment = Untouched()
    losses: list[float] = []
    before = run.loop.optimizer_step

    def optimizer_step(*args, **kwargs) -> None:
        before(*args, **kwargs)
        losses.append(float(run.loop.latest["loss"]))

    run.loop.optimizer_step = optimizer_step
    seeds, loss = [], run.module.loss

    def noting_loss(batch, moment):
        seeds.append((moment.part, moment.generator.initial_seed(), float(torch.rand(()))))
        return loss(batch, moment)

    run.module.loss = noting_loss
    objective = run.module.objective
    run.fit()
    return {"losses": losses, "gradients": objective.first_gradients, "counts": objective.counts, "seeds": seeds}


def finetune(folder: Path, **options) -> tuple[float, ...]:
    """Fine-tune in all processes; return the losses."""
    settings = FinetuneSettings(base_lr=0.1, batch_size=16, epochs=2, warmup_epochs=1, drop_path=0.0, **options)
    train = bright_and_dark(32, 0)
    processes = started_processes()
    done = finetuned(
        tiny(), train, train, settings=settings, processes=processes, folder=folder / "finetuned", **STATISTICS
    )
    return done.score.losses


def main(folder: Path) -> None:
    for name, options in CASES.items():
        outcome = train(folder, name, *options)
        torch.save(outcome, folder / f"{name}-{dist.get_rank()}.pt")
    torch.save(finetune(folder), folder / f"finetuned-{dist.get_rank()}.pt")
