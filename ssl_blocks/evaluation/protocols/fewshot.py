"""Few labels per class."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ssl_blocks.bounds import Count, Seed
from ssl_blocks.engine.settings import StrictModel
from ssl_blocks.evaluation.protocol import Protocol, Score
from ssl_blocks.evaluation.protocols.finetune import Finetune, FinetuneOptions

if TYPE_CHECKING:
    from ssl_blocks.evaluation.labelled import Labelled
    from ssl_blocks.evaluation.subject import Subject


class FewshotSettings(StrictModel):
    """A logistic regression on few labels per class."""

    shots: Count = Field(10, description="labels per class")
    seeds: tuple[Seed, ...] = Field((0, 1, 2), min_length=1, description="each draws labels of its own")
    finetune: bool = Field(False, description="fine-tune on these labels, by the options of finetune, too")


class Fewshot(Protocol[FewshotSettings, "Labelled"]):
    """Linear probe on few labels per class."""

    name = "fewshot"
    Settings = FewshotSettings

    @classmethod
    def configured(cls, config: Any, **context: Any) -> Sequence[Protocol[Any, Any]]:
        """The probe, and fine-tuning on the same labels where that is asked for."""
        settings: FewshotSettings = config.fewshot
        probe = cls(settings, **context)
        return [probe, FewshotFinetune(config.finetune, few=settings, **context)] if settings.finetune else [probe]

    @property
    def heading(self) -> str:
        """What its column is called in tables."""
        return f"linear probe, {self.settings.shots} labels a class"

    def check(self, subject: "Subject", data: "Labelled") -> None:
        """Refuse more labels than a class has."""
        import torch

        from ssl_blocks.evaluation.fewshot import draw_shots

        draw_shots(data.train_labels, data.test_labels, self.settings.shots, torch.Generator().manual_seed(0))

    def score(self, subject: "Subject", data: "Labelled") -> Score:
        """Mean and deviation over the seeds."""
        from ssl_blocks.evaluation.fewshot import fewshot_probe

        shots, seeds = self.settings.shots, self.settings.seeds
        found = fewshot_probe(*subject.features(data), shots=shots, seeds=seeds, device=subject.extractor.device)
        return Score.spread(**found.as_dict(), shots=shots)


class FewshotFinetune(Finetune):
    """Fine-tuning on few labels per class: ``few`` says how many, and which."""

    name = "fewshot_finetune"

    def __init__(self, settings: FinetuneOptions | None = None, *, few: FewshotSettings, **context: Any) -> None:
        super().__init__(settings, **context)
        self.few, self.heading = few, f"fine-tuned, {few.shots} labels a class"

    def score(self, subject: "Subject", data: "Labelled") -> Score:
        """Mean and deviation over the seeds."""
        from ssl_blocks.evaluation.fewshot import fewshot_finetune

        few = self.few
        found = fewshot_finetune(subject.extractor, data, shots=few.shots, seeds=few.seeds, settings=self.settings)
        return Score.spread(**found.as_dict(), shots=self.few.shots)
