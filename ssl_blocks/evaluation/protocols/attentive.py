"""The attentive probe."""

from typing import TYPE_CHECKING

from pydantic import Field

from ssl_blocks.bounds import Batch, Decay, Epochs, Heads, Rate
from ssl_blocks.engine.settings import StrictModel
from ssl_blocks.evaluation.protocol import Protocol, Score

if TYPE_CHECKING:
    from ssl_blocks.evaluation.labelled import Labelled
    from ssl_blocks.evaluation.subject import Subject


class AttentiveSettings(StrictModel):
    """A learned query that looks at all places of frozen features, and a linear classifier."""

    heads: Heads = Field(4, description="of attention; must divide the width of the features")
    lrs: tuple[Rate, ...] = Field(
        (1e-3, 3e-3, 1e-2), min_length=1, description="peak rates of AdamW, of which one is chosen on images held out"
    )
    epochs: Epochs = Field(30, description="passes over train")
    batch_size: Batch = Field(128, description="images per step; fewer where train is smaller")
    weight_decay: Decay = Field(0.01, description="of all that is learned")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps")
    validation: float = Field(0.1, gt=0, lt=1, description="share of each class that is held out to choose")


class Attentive(Protocol[AttentiveSettings, "Labelled"]):
    """Attentive probe: a learned query over all patch tokens or regions."""

    name = "attentive"
    Settings = AttentiveSettings
    heading = "attentive probe (rate)"

    def score(self, subject: "Subject", data: "Labelled") -> Score:
        """Accuracy of the rate that did best on images held out."""
        from ssl_blocks.evaluation.attentive import attentive_probe

        found = attentive_probe(subject.extractor, data, settings=self.settings, seed=self.seed, progress=True)
        return Score(found.as_dict(), f"{found.accuracy:.1%} ({found.chosen:.2g})")
