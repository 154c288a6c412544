"""The roles of evaluation: a protocol asks something of a subject on data, and tells a score."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from pydantic import Field, model_validator

from ssl_blocks.engine.settings import StrictModel
from ssl_blocks.evaluation.sharing import Share

if TYPE_CHECKING:
    from ssl_blocks.evaluation.labelled import Labelled
    from ssl_blocks.evaluation.subject import Subject

S = TypeVar("S", bound=StrictModel)
D = TypeVar("D")

RANDOM = "random encoder"  # the row of the same model with weights drawn anew


class CannotScoreError(ValueError):
    """Data or features of which a score cannot be computed, whatever the settings: one class, a class that is missing,
    too few rows. The command says so, and goes on with what else was asked."""


class TrainedSettings(StrictModel):
    """What protocols that train have in common: the model may be kept, and a run of them be gone on with."""

    save: Path | None = Field(None, description="folder for checkpoints and the trained model, head included")
    resume: bool = Field(False, description="go on in the folder of save, or begin there")
    from_random: bool = Field(False, description="train from random weights, too: the supervised baseline")

    @model_validator(mode="after")
    def _has_a_folder(self) -> "TrainedSettings":
        if self.resume and self.save is None:
            raise ValueError("resume=true goes on in the folder of save, which is not given")
        return self

    def check_folder(self) -> None:
        """Refuse a folder in which something was trained already, before anything is computed."""
        from ssl_blocks.engine.checkpoints import list_checkpoints

        for folder in [] if self.save is None or self.resume else [self.save, self.save / "random"]:
            if list_checkpoints(folder):
                raise FileExistsError(f"save={str(folder)!r} holds checkpoints already: give another, or resume=true")

    def keeping(self, row: str) -> dict[str, Any]:
        """Folder, resume and processes for the row of that name, as functions of the training loop take them."""
        from ssl_blocks.engine.parallel import started_processes

        folder = self.save / "random" if self.save is not None and row == RANDOM else self.save
        return {"folder": folder, "resume": self.resume, "processes": started_processes()}


@dataclass(frozen=True)
class Result:
    """What was found, in plain values; the base of all that is."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Score:
    """What a protocol finds.

    Args:
        values: numbers and what they depend on, plain, for JSON.
        shown: the same as a table shows it, in a word or two.

    Examples:
        >>> Score.accuracy(0.9512)
        Score(values={'accuracy': 0.9512}, shown='95.1%')
    """

    values: Mapping[str, Any]
    shown: str

    @classmethod
    def accuracy(cls, share: float, **more: Any) -> "Score":
        """Of a share of right answers, 0..1, and further values."""
        return cls({"accuracy": share, **more}, f"{share:.1%}")

    @classmethod
    def spread(cls, mean: float, std: float, **more: Any) -> "Score":
        """Of shares that were found several times, by their mean and deviation."""
        return cls({"mean": mean, "std": std, **more}, f"{mean:.1%} ± {std:.1%}")


class Protocol(ABC, Generic[S, D]):
    """One way to ask what an encoder is worth: the command, its help, tables and results know it by this class.

    A protocol of your own has a ``name``, a first line of its docstring for the help, ``Settings`` and ``score``; the
    command takes it as ``MODULE:CLASS``. Load what is heavy inside the methods: the help needs the settings alone.

    Args:
        settings: ``None`` means the defaults.
        seed: of all that is drawn.
        say: tells the user what is being done.
        share: which images are this process's, where several share the work.
    """

    name: ClassVar[str]
    Settings: type[S]
    is_frozen: ClassVar[bool] = True
    """Whether the encoder stays as it is: then raw pixels and an encoder under its mask can be asked, too."""
    is_shared: ClassVar[bool] = False
    """Whether several processes can share the images."""

    def __init__(
        self,
        settings: S | None = None,
        *,
        seed: int = 0,
        say: Callable[[str], None] = lambda text: None,
        share: Share | None = None,
    ) -> None:
        self.settings: S = self.Settings() if settings is None else settings
        self.seed, self.say, self.share = seed, say, share or Share()

    @classmethod
    def configured(cls, config: Any, **context: Any) -> "Sequence[Protocol[Any, Any]]":
        """The protocol as the command configures it, and what else its settings ask for.

        ``config`` has a section for each protocol, by its name; the context is ``seed``, ``say`` and ``share``.
        """
        return [cls(getattr(config, cls.name), **context)]

    @property
    def heading(self) -> str:
        """What its column is called in tables."""
        return self.name.replace("_", " ")

    def with_random(self, wanted: bool) -> bool:
        """Whether the same encoder with random weights is asked, too: as the command's general option ``wanted`` says.

        What is trained has an option of its own, for it takes long.
        """
        return self.settings.from_random if isinstance(self.settings, TrainedSettings) else wanted

    def load(self, subject: "Subject", images: "Callable[[], Labelled]") -> D:
        """Find the data it asks on: of the subject's size and channels.

        ``images`` loads the labelled images that the command was told of, once for all protocols.
        """
        return images()  # type: ignore[return-value]  # what most take; another `D` comes with a method of its own

    def check(self, subject: "Subject", data: D) -> None:
        """Refuse by a ``ValueError``, before anything is computed, what would go wrong after minutes."""

    def baselines(self, data: D) -> dict[str, Score]:
        """Scores that need no encoder, by name."""
        return {}

    @abstractmethod
    def score(self, subject: "Subject", data: D) -> Score:
        """Ask it of a subject on data out of `load`: its ``extractor`` makes features, and ``features`` keeps them."""
