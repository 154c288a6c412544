"""Scores beside each other."""

import torch

from ssl_blocks.evaluation import Extractor, RawPixels, fewshot_probe, knn_accuracy, score_features


def some_features(num: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(num) % 3
    return torch.randn(num, 5, generator=generator) + 2 * labels[:, None], labels


def test_scores_are_those_of_knn_and_probe() -> None:
    features, labels = some_features()
    scores = score_features("x", features[:45], labels[:45], features[45:], labels[45:], shots=4)
    assert scores.knn == knn_accuracy(features[:45], labels[:45], features[45:], labels[45:])
    assert scores.fewshot == fewshot_probe(features[:45], labels[:45], features[45:], labels[45:], shots=4)
    assert (scores.name, scores.shots) == ("x", 4)


def test_few_images_are_scored_as_far_as_possible() -> None:
    features, labels = some_features()
    scores = score_features("x", features[:6], labels[:6], features[45:], labels[45:], shots=4)
    assert scores.knn == knn_accuracy(features[:6], labels[:6], features[45:], labels[45:], k=6)
    assert scores.fewshot is None
    assert scores.as_dict()["fewshot"] is None


def test_raw_pixels_are_normalised_and_flat() -> None:
    images = torch.tensor([[[[0, 255]], [[51, 102]]]], dtype=torch.uint8)
    features = Extractor(RawPixels(channels=2, size=(1, 2)), mean=(0.5, 0.2), std=(0.5, 0.1))(images)
    torch.testing.assert_close(features, torch.tensor([[-1.0, 1.0, 0.0, 2.0]]))
