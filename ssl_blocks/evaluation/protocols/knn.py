"""Nearest neighbours."""

from typing import TYPE_CHECKING

from pydantic import Field

from ssl_blocks.bounds import Count, Positive
from ssl_blocks.engine.settings import StrictModel
from ssl_blocks.evaluation.protocol import CannotScoreError, Protocol, Score

if TYPE_CHECKING:
    from ssl_blocks.evaluation.labelled import Labelled
    from ssl_blocks.evaluation.subject import Subject


class KnnSettings(StrictModel):
    """Nearest neighbours by cosine similarity."""

    k: Count = Field(20, description="number of neighbours that vote")
    temperature: Positive = Field(0.07, description="the smaller, the more the nearest outweigh the others")


class Knn(Protocol[KnnSettings, "Labelled"]):
    """Nearest neighbours."""

    name = "knn"
    Settings = KnnSettings
    heading = "kNN"
    is_shared = True

    def check(self, subject: "Subject", data: "Labelled") -> None:
        """Refuse more neighbours than images."""
        if self.settings.k > len(data.train):
            raise CannotScoreError(
                f"knn.k={self.settings.k} must be at most the number of training images, {len(data.train)}"
            )

    def score(self, subject: "Subject", data: "Labelled") -> Score:
        """Share of test images that their neighbours classify correctly."""
        from ssl_blocks.evaluation.knn import knn_accuracy

        shared = self.share.world > 1
        arguments = [x.to(subject.extractor.device) for x in subject.features(data, self.share)]
        return Score.accuracy(
            knn_accuracy(
                *arguments,
                k=self.settings.k,
                temperature=self.settings.temperature,
                bank_sharded=shared,
                queries_sharded=shared,
            )
        )
