"""Settings that loops share: what a configuration model is, and the sections on data, optimizer and trainer."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from ssl_blocks.bounds import (
    Batch,
    Channels,
    Count,
    Decay,
    Dropped,
    Epochs,
    Gigabytes,
    NotNegative,
    Number,
    Parts,
    Pixels,
    Positive,
    Processes,
    Rate,
    Span,
    Workers,
)
from ssl_blocks.code import import_named, is_code
from ssl_blocks.files import at_home


@contextmanager
def section(name: str) -> Iterator[None]:
    """Say in errors which section of the configuration they are about: several have a ``name``."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        kinds = (FileNotFoundError, ValueError, TypeError, OSError)
        kind = next(k for k in kinds if isinstance(error, k))
        raise kind(f"{name}: {error}") from error


def values_of(model: BaseModel, *names: str) -> dict[str, Any]:
    """Some fields by name, for what calls them alike."""
    return {name: getattr(model, name) for name in names}


class StrictModel(BaseModel):
    """A configuration in which an unknown field is an error, and so is a number that cannot be meant."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _paths_at_home(cls, value: Any) -> Any:
        return at_home(value) if isinstance(value, Path) else value

    @model_validator(mode="before")
    @classmethod
    def _parts_have_kinds(cls, given: Any) -> Any:
        """A part of which no kind is given is of the default's; truth is no number."""
        if not isinstance(given, dict):
            return given
        kinds = {name: kind for name, part in given.items() if (kind := default_kind(cls, name, part)) is not None}
        whole = given | {name: {"kind": kind, **given[name]} for name, kind in kinds.items()}
        numbers = {name for name, field in cls.model_fields.items() if not _takes_bool(field.annotation)}
        return {name: _worded(value) if name in numbers else value for name, value in whole.items()}


def _worded(value: Any) -> Any:
    """Truth as a word, which fields of numbers refuse: Python takes it for 1."""
    if isinstance(value, list | tuple):
        return [_worded(member) for member in value]
    return str(value).lower() if isinstance(value, bool) else value


def _takes_bool(annotation: Any) -> bool:
    return annotation in (bool, Any, object) or any(map(_takes_bool, get_args(annotation)))


def default_kind(model: type[BaseModel], name: str, part: Any) -> str | None:
    """The kind of a field's default, where a part is described that says nothing of its own."""
    field = model.model_fields.get(name)
    if field is None or not isinstance(part, dict) or "kind" in part:
        return None
    return getattr(field.default, "kind", None)


OWN_LOGGERS, SERVICES = ("csv", "tensorboard"), ("wandb", "mlflow", "trackio")


def _shares(scale: tuple[float, float]) -> tuple[float, float]:
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError("must be (smallest, largest), both above 0 and at most 1")
    return scale


NONE = (None, "None", [None], ["None"])  # as command lines say it of fields that may be lists

AreaShares = Annotated[tuple[float, float], AfterValidator(_shares)]
"""Smallest and largest area of a random crop, as a share of the image."""


class DataConfig(StrictModel):
    """Where images come from, and how they are varied."""

    name: str = Field(
        "digits", description="data set by name; imagefolder:, csv:, zip: or array:PATH; or MODULE:FUNCTION of your own"
    )
    image_size: Pixels | tuple[Pixels, Pixels] | None = Field(
        None, description="side in pixels, or height and width (64,96); default: the images' own"
    )
    channels: Channels | None = Field(
        None, description="1 makes images grey; default: the data set's own, 3 for pictures of 8 bits in files"
    )
    value_range: tuple[Number, Number] | None = Field(
        None, description="values that are black and white; default: of 8 bits their own, of other images measured"
    )
    root: Path = Field(Path(".data"), description="folder for downloads")
    max_train: Count | None = Field(None, description="train on this many images, drawn class by class")
    max_test: Count | None = Field(None, description="test on this many images, drawn class by class")
    flip: bool = Field(True, description="mirror half of the images")
    storage: Literal["auto", "memory", "stream"] = Field(
        "auto", description="decode once into memory, or anew every epoch; auto: memory where max_memory_gib suffices"
    )
    max_memory_gib: Gigabytes = Field(8.0, description="most memory that decoded images may take, per process")
    workers: Workers | None = Field(None, description="decoding processes of each process; default: its share of cores")
    corrupt: Literal["error", "skip"] = Field("error", description="what to do about an image that cannot be read")

    @field_validator("image_size", mode="before")
    @classmethod
    def _sides(cls, given: object) -> object:
        """One number or two; a command line gives both as a list of words."""
        if given in NONE:
            return None
        sides = list(given) if isinstance(given, (list, tuple)) else [given]
        try:
            numbers = [int(str(side)) for side in sides]
        except ValueError:
            raise ValueError("must be a whole number, or two: height and width, such as 64,96") from None
        if len(numbers) not in (1, 2):
            raise ValueError("must be one side, or height and width, such as 64,96")
        if min(numbers) < 1:
            raise ValueError("must be greater than 0")
        return numbers[0] if len(numbers) == 1 else tuple(numbers)

    @field_validator("value_range", mode="before")
    @classmethod
    def _is_left_out(cls, given: object) -> object:
        return None if given in NONE else given

    @field_validator("value_range")
    @classmethod
    def _ascends(cls, given: tuple[float, float] | None) -> tuple[float, float] | None:
        if given is not None and given[0] >= given[1]:
            raise ValueError("must be (black, white), of which the second is larger")
        return given


class CroppedDataConfig(DataConfig):
    """Where images come from, and how they are varied."""

    crop_scale: AreaShares = Field((0.2, 1.0), description="share of the area that a random crop keeps")


Schedules = Annotated[
    Literal["mae", "dino", "apl"],
    Field(
        description="whose code the learning rate follows; mae: step i of a warm-up of n has i/n of the peak, then a "
        "cosine; dino: i/(n-1); apl: once an epoch, the cosine from the first one on"
    ),
]


def fitting_warmup(warmup_steps: int, *, num_steps: int) -> int:
    """Steps of a warm-up: a tenth of the run's where it would not be shorter than the run."""
    return warmup_steps if warmup_steps < num_steps else num_steps // 10


class OptimizerConfig(StrictModel):
    """AdamW with a linear warm-up and a cosine to ``min_lr``."""

    base_lr: Rate = Field(1e-3, description="learning rate per 256 images of a batch")
    batch_size: Batch = Field(256, description="images per step, over all processes and accumulated batches")
    accumulate: Parts = Field(1, description="take a step's images in this many parts, to save memory")
    weight_decay: Decay = Field(0.05, description="not applied to norms, biases, positions and tokens")
    weight_decay_end: Decay | None = Field(
        None, description="weight decay at the end, reached along half a cosine; default: constant"
    )
    betas: tuple[Dropped, Dropped] = Field((0.9, 0.95), description="AdamW's decay rates")
    warmup_epochs: Span = Field(10.0, description="epochs of linear warm-up")
    warmup_start: float = Field(0.0, ge=0, le=1, description="share of the peak at which the warm-up begins")
    min_lr: NotNegative = Field(0.0, description="learning rate at the end")
    schedule: Schedules = "mae"
    clip_grad: Positive | None = Field(None, description="largest gradient norm; default: no clipping")

    @model_validator(mode="after")
    def _falls(self) -> "OptimizerConfig":
        if self.min_lr > self.lr:
            raise ValueError(
                f"optimizer.min_lr={self.min_lr:g} must not exceed the peak rate {self.lr:g}, which is "
                "optimizer.base_lr * optimizer.batch_size / 256"
            )
        if self.schedule == "apl" and not self.warmup_start:
            raise ValueError(
                "optimizer.warmup_start=0 must be above 0 with optimizer.schedule=apl, which multiplies by it"
            )
        return self

    @property
    def lr(self) -> float:
        """Peak learning rate: the base rate scaled linearly with the batch (MAE)."""
        return self.base_lr * self.batch_size / 256

    def warmup_steps(self, *, steps_per_epoch: int, epochs: int) -> int:
        """Optimizer steps of the warm-up: a tenth of the run's where it would not be shorter than the run.

        Examples:
            >>> settings = OptimizerConfig(warmup_epochs=10)
            >>> [settings.warmup_steps(steps_per_epoch=20, epochs=epochs) for epochs in (11, 10, 3)]
            [200, 20, 6]
        """
        return fitting_warmup(int(self.warmup_epochs * steps_per_epoch), num_steps=steps_per_epoch * epochs)

    def warmup_remark(self, epochs: int) -> str | None:
        """What is to be said where the warm-up would not be shorter than a run of so many epochs."""
        if self.warmup_epochs < epochs:
            return None
        return (
            f"optimizer.warmup_epochs={self.warmup_epochs:g} is not shorter than trainer.epochs={epochs}: the warm-up "
            f"takes a tenth of the run, {epochs / 10:g} epochs"
        )


class TrainerConfig(StrictModel):
    """How long, how precisely and on what."""

    epochs: Epochs = Field(100, description="passes over the training images")
    precision: Literal["auto", "bf16", "bf16-pure", "fp32", "tf32"] = Field(
        "auto",
        description="auto: bf16 where the hardware has it, else fp32; bf16-pure: the same, with linear "
        "maps kept in 16 bits and updated in 32; tf32: fp32 with products in TF32",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU if there is one")
    devices: Processes | None = Field(None, description="processes on this machine; default: torchrun's, else 1")
    num_nodes: Processes | None = Field(None, description="machines; default: torchrun's, else 1")
    strategy: Literal["ddp", "fsdp"] = Field(
        "ddp", description="several processes: whole copies of the model (ddp), or its blocks in shards (fsdp)"
    )
    compile: bool = Field(False, description="compile the objective (worth it on a GPU)")
    compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = Field(
        "default", description="torch.compile's mode; those with CUDA graphs of their own need graph=off"
    )
    graph: Literal["auto", "on", "off"] = Field(
        "auto", description="capture whole steps as a CUDA graph; auto: on a GPU, where it can be done"
    )
    knn_every: Count | None = Field(None, description="kNN on the test images every so many epochs")
    probe_every: Count | None = Field(
        None, description="a linear probe in closed form on the same features every so many epochs"
    )
    knn_bank: Count = Field(5000, description="training images that kNN and probe while training look at")
    look_every: Count | Literal["auto"] | None = Field(
        "auto",
        description="epochs between two looks: pictures, and what features are without labels; auto: a tenth "
        "of the run; None: never",
    )
    loggers: tuple[str, ...] = Field(
        OWN_LOGGERS, description="csv, tensorboard, wandb, mlflow, trackio, or MODULE:FUNCTION of your own"
    )
    log_every: Count | None = Field(
        None, description="steps between two lines where the output is no terminal; default: a tenth of the run"
    )
    score: bool = Field(True, description="score raw pixels, and the encoder before and after training")
    score_bank: Count | None = Field(
        None, description="training images that these scores look at; default: all, or what takes about 5% of the run"
    )
    figures: bool = Field(True, description="draw pictures when all else is done")
    checkpoint_every: Rate = Field(1.0, description="epochs between checkpoints; 0.5 is twice an epoch")
    keep_checkpoints: Count = Field(2, description="how many of the newest checkpoints are kept")

    @field_validator("loggers")
    @classmethod
    def _loggers_have_names(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [word for word in given if word not in (*OWN_LOGGERS, *SERVICES) and not is_code(word)]
        if wrong or len(set(given)) < len(given):
            named = f"{wrong[0]!r} is none" if wrong else "no two may be the same"
            raise ValueError(f"must be of {', '.join((*OWN_LOGGERS, *SERVICES))} or MODULE:FUNCTION, but {named}")
        return given

    def check_loggers(self) -> None:
        """Refuse loggers whose package or function is not there, before anything is computed.

        Raises:
            ValueError: naming the one, and how to get it.
        """
        for word in self.loggers:
            if word in SERVICES and find_spec(word) is None:
                raise ValueError(f"trainer.loggers: {word} is not installed: pip install 'ssl_blocks[{word}]'")
            if is_code(word):
                with section("trainer.loggers"):
                    import_named(word)

    @model_validator(mode="after")
    def _one_kind_of_graphs(self) -> "TrainerConfig":
        if self.graph == "on" and self.captures_itself:
            raise ValueError(
                f"trainer.compile_mode={self.compile_mode} makes CUDA graphs of its own: use trainer.graph=off or auto"
            )
        return self

    @property
    def captures_itself(self) -> bool:
        """Whether compiled code makes CUDA graphs of its own."""
        return self.compile_mode in ("reduce-overhead", "max-autotune") and self.compile
