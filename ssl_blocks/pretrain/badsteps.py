"""A step of a run that came to no finite number, done again."""

from pathlib import Path
from typing import Any

from ssl_blocks.data import ImageData
from ssl_blocks.engine.checkpoints import MARK
from ssl_blocks.engine.devices import choose_device
from ssl_blocks.engine.replay import read_dump, replay_step
from ssl_blocks.pretrain.module import PretrainModule
from ssl_blocks.pretrain.recipe import Assemble, C, build


def replay(config: C, assemble: Assemble[C], dump: Path, *, data: ImageData | None = None) -> list[str]:
    """Do a step again that a run kept, and tell in lines what is not finite, and where first.

    The step runs as it is, neither compiled nor captured, in one process.

    Args:
        config: of the run; device and precision may be others.
        assemble: builds the objective for the data.
        dump: ``bad-step-NUMBER.ckpt`` in the run's folder.
        data: images of the run, of which batches are not read again; ``None`` loads them.

    Raises:
        ValueError: if the file is damaged or another, or of another objective.
    """
    content = read_dump(dump)
    device, dtype = choose_device(config.trainer.device, config.trainer.precision, section="trainer.")
    plain = config.model_copy(update={"trainer": config.trainer.model_copy(update={"compile": False})})
    data = plain.load_data() if data is None else data
    module = PretrainModule(build(plain, assemble, data), data, plain)
    return replay_step(module, content, device=device, autocast_dtype=dtype)


def dumped_config(dump: Path) -> dict[str, Any]:
    """Values of the configuration of the run that kept a step.

    Raises:
        ValueError: if the file is damaged or another.
    """
    settings: dict[str, Any] = read_dump(dump)[MARK]["configuration"]
    return settings
