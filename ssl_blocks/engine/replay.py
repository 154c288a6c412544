"""A step that came to no finite number: kept with its batch, and done again to see where it went wrong."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ssl_blocks.engine.checkpoints import FORMAT_VERSION, MARK, read_checkpoint, write_checkpoint
from ssl_blocks.engine.masters import MasterAdamW
from ssl_blocks.engine.task import Moment, Portion, Task
from ssl_blocks.files import atomically
from ssl_blocks.randomness import mix_seed

if TYPE_CHECKING:
    from ssl_blocks.engine.loop import Loop

KIND = "step"  # of a checkpoint, as it were, that holds a single step


def dump_path(run: Path, step: int) -> Path:
    """Where a bad step is kept."""
    return run / f"bad-step-{step:08d}.ckpt"


def keep_step(loop: "Loop", step: int) -> str:
    """Keep a bad step in the run's folder, and return a sentence on it.

    Its batches are loaded anew, in the order in which one process takes them; weights are taken as they are.
    """
    if loop.folder is None:
        return ""
    path, task, ranks, cpu = dump_path(loop.folder, step), loop.task, range(loop.world), torch.device("cpu")
    exact = loop.halted is not None or not (loop.graph or loop.on_gpu)  # else steps have changed them
    try:
        mark = {
            "format_version": FORMAT_VERSION,
            "kind": KIND,
            "step": step,
            "weights_of": step if exact else max(step + 1, loop.global_step),  # the step before which they were so
            "not_finite": sorted(loop.unbounded),
            "configuration": task.configuration(),
            "facts": task.facts(),
        }
        state = loop.trainer.strategy.lightning_module_state_dict()
        state = loop.optimizer.whole(state) if isinstance(loop.optimizer, MasterAdamW) else state
        if loop.global_rank == 0:
            loaders = [iter(task.batches(Portion(step, rank, loop.world, loop.world, cpu))) for rank in ranks]
            batches = [[next(loader) for loader in loaders] for _ in range(task.plan.accumulate)]
            with atomically(path) as temporary:
                write_checkpoint({MARK: mark, "state_dict": dict(state), "batches": batches}, temporary)
    except Exception as error:  # whatever it is, the run ends for another reason
        return f"Its batch could not be kept ({type(error).__name__}: {' '.join(str(error).split())}). "
    return f"Its batch and weights are in {path}{task.replay}. "


def read_dump(path: Path) -> dict[str, Any]:
    """Read what `keep_step` has written; ``ValueError`` if it is something else."""
    content = read_checkpoint(path)
    if content[MARK].get("kind") != KIND:
        raise ValueError(f"{path} must be a step that a run kept (bad-step-NUMBER.ckpt), and is another file")
    return content


def replay_step(
    task: Task, dump: Mapping[str, Any], *, device: str = "cpu", autocast_dtype: torch.dtype | None = None
) -> list[str]:
    """Do a step again, forward and backward, and tell in lines what is not finite, and where first.

    The task is as it was trained, and gets the weights of the dump.

    Raises:
        ValueError: if the weights are another task's.
    """
    step, model = dump[MARK]["step"], task.model
    try:
        model.load_state_dict({name.removeprefix("model."): value for name, value in dump["state_dict"].items()})
    except RuntimeError as error:
        raise ValueError(f"the step is of another model: {' '.join(str(error).split())[:300]}") from None
    model.to(device).train()
    task.before_step(task.plan.progress(step))
    with _watched(model) as seen, torch.random.fork_rng():
        losses = list(_parts(task, dump["batches"], step, torch.device(device), autocast_dtype))
    weights_of = dump[MARK]["weights_of"]
    later = "" if weights_of == step else f", weights as they were before step {weights_of}"
    lines = [f"step {step} (counted from 0) on {device}, {autocast_dtype or 'without autocast'}{later}"]
    state = {name: x for name, x in dump["state_dict"].items() if name not in dump[MARK]["not_finite"]}
    broken = [name for name, x in state.items() if x.is_floating_point() and not x.isfinite().all()]
    if broken:
        lines.append(f"weights that are not finite before the step: {len(broken)} of {len(state)}, {broken[0]} first")
    lines += [f"loss of part {number}: {loss:g}" for number, loss in enumerate(losses)]
    between = "" if torch.tensor(losses).isfinite().all() else ", and the loss made of it is not"
    lines.append(f"forward: {seen['forward'] or f'what modules return is finite{between}'}")
    lines.append(f"backward: {seen['backward'] or 'gradients of what modules return are finite'}")
    bad = [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    graded = sum(p.grad is not None for p in model.parameters())
    first = f", {bad[0]} first" if bad else ""
    lines.append(f"parameters whose gradient is not finite: {len(bad)} of {graded}{first}")
    if not (bad or any(seen.values()) or not torch.tensor(losses).isfinite().all()):
        lines.append("all is finite this time: another device, precision or library may have made the difference")
    return lines


def _parts(
    task: Task, batches: list[list[Any]], step: int, device: torch.device, dtype: torch.dtype | None
) -> Iterator[float]:
    """Compute every part as its process did, one after the other."""
    plan, world = task.plan, len(batches[0])
    for number, of_processes in enumerate(batches):
        for rank, batch in enumerate(of_processes):
            key = (plan.seed, rank, step * plan.accumulate + number)
            torch.manual_seed(mix_seed(*key, 1))
            generator = torch.Generator(device).manual_seed(mix_seed(*key))
            there = tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, batch)
            with torch.autocast(device.type, dtype, dtype is not None):
                loss = task.loss(there, Moment(step, number * world + rank, generator)).mean
            loss.backward()  # type: ignore[no-untyped-call]
            yield float(loss.detach())


@contextmanager
def _watched(model: nn.Module) -> Iterator[dict[str, str]]:
    """Say meanwhile, forward and backward, what is the first of all that modules return that is not finite."""
    seen = {"forward": "", "backward": ""}

    def look(name: str, module: nn.Module, given: Any, returned: Any) -> None:
        what = f"{name} ({type(module).__name__})"
        for value in _floats(returned):
            if not seen["forward"] and not value.isfinite().all():
                clean = all(x.isfinite().all() for x in _floats(given))
                of = "finite numbers" if clean else "what is not finite itself"
                seen["forward"] = f"{what} is the first to return what is not finite, of {of}"
            if value.requires_grad:
                value.register_hook(partial(look_back, what))  # type: ignore[no-untyped-call]

    def look_back(what: str, gradient: Tensor) -> None:
        if not seen["backward"] and not gradient.isfinite().all():
            seen["backward"] = f"the gradient of what {what} returned is the first that is not finite"

    named = model.named_modules()
    hooks = [module.register_forward_hook(partial(look, name or "the model")) for name, module in named]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _floats(values: Any) -> list[Tensor]:
    """Tensors of floating point in a nest of containers and of the library's values."""
    found: list[Tensor] = []
    for leaf in tree_leaves(values):
        if is_dataclass(leaf) and not isinstance(leaf, type):
            found += _floats([getattr(leaf, field.name) for field in fields(leaf)])
        elif isinstance(leaf, Tensor) and leaf.is_floating_point():
            found.append(leaf)
    return found
