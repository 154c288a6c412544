"""Logistic regression equals scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ssl_blocks.evaluation import logistic, logistic_probe
from ssl_blocks.evaluation.logistic import fit_logistic


def draw(count: int, seed: int, classes: int = 4, noise: float = 1.5, dim: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    return 2 * torch.eye(classes, dim)[labels] + noise * torch.randn(count, dim, generator=generator), labels


@pytest.fixture(params=["newton", "lbfgs"])
def solver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Solve by either method, and by no other."""
    if request.param == "lbfgs":
        monkeypatch.setattr(logistic, "MOST_UNKNOWNS", 0)
    else:
        monkeypatch.setattr(logistic, "_by_lbfgs", None)
    return str(request.param)


@pytest.mark.usefixtures("solver")
@pytest.mark.parametrize("c", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_probabilities_are_those_of_scikit_learn(c: float, classes: int) -> None:
    (x, y), (test, _) = draw(60, 0, classes), draw(40, 1, classes)
    weight, bias = fit_logistic(x.double(), y, num_classes=classes, c=c)
    ours = (test.double() @ weight.T + bias).softmax(1).numpy()
    theirs = LogisticRegression(C=c, tol=1e-8, max_iter=10_000).fit(x.double().numpy(), y.numpy())
    np.testing.assert_allclose(ours, theirs.predict_proba(test.double().numpy()), atol=1e-4)
    assert ours.std() > 0.02


@pytest.mark.usefixtures("solver")
def test_more_features_than_images_have_the_same_optimum() -> None:
    x, y = draw(30, 0, dim=100)
    weight, bias = fit_logistic(x.double(), y, num_classes=4, c=0.1)
    theirs = LogisticRegression(C=0.1, tol=1e-9, max_iter=10_000).fit(x.double().numpy(), y.numpy())
    np.testing.assert_allclose(weight - weight.mean(0), theirs.coef_ - theirs.coef_.mean(0), atol=1e-4)
    np.testing.assert_allclose(bias - bias.mean(), theirs.intercept_ - theirs.intercept_.mean(), atol=1e-4)


def alike(count: int, width: int, classes: int) -> tuple[Tensor, Tensor]:
    """Features as an encoder makes them: many of them say nearly the same, and labels are hard to tell."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(width, width, dtype=torch.float64, generator=generator)
    hidden = torch.randn(count, width, dtype=torch.float64, generator=generator)
    hidden = hidden * torch.logspace(0, -3, width, dtype=torch.float64)
    noise = 60 * torch.randn(count, classes, dtype=torch.float64, generator=generator)
    labels = (hidden @ torch.randn(width, classes, dtype=torch.float64, generator=generator) * 20 + noise).argmax(1)
    x = hidden @ mixing
    return (x - x.mean(0)) / x.std(0, correction=0), labels


@pytest.mark.usefixtures("solver")
def test_features_that_say_nearly_the_same_need_few_steps() -> None:
    x, y = alike(1000, 64, 5)
    weight, bias = fit_logistic(x, y, num_classes=5, c=1.0, max_iterations=150)  # a warning would fail the test
    theirs = LogisticRegression(C=1.0, tol=1e-9, max_iter=20_000).fit(x.numpy(), y.numpy())
    ours = (x @ weight.T + bias).softmax(1).numpy()
    np.testing.assert_allclose(ours, theirs.predict_proba(x.numpy()), atol=1e-4)
    assert np.linalg.cond(x.numpy()) > 500


def test_probe_equals_scikit_learn_on_standardised_features() -> None:
    (x, y), (test, test_labels) = draw(60, 0), draw(200, 1)
    score = logistic_probe(1000 * x + 7, y, 1000 * test + 7, test_labels, cs=(0.05,))
    mean, std = x.mean(0), x.std(0, correction=0)
    expected = LogisticRegression(C=0.05, tol=1e-8).fit((x - mean) / std, y).score((test - mean) / std, test_labels)
    assert score.accuracy == pytest.approx(expected, abs=1e-4)
    assert 0.4 < expected < 1
    assert score.validation == ()


@pytest.mark.usefixtures("solver")
def test_constant_features_do_no_harm() -> None:
    (x, y), (test, test_labels) = draw(60, 0), draw(40, 1)
    same = logistic_probe(x, y, test, test_labels)
    padded = [torch.nn.functional.pad(part, (0, 1), value=3.0) for part in (x, test)]
    assert logistic_probe(padded[0], y, padded[1], test_labels) == same


def test_strength_is_chosen_without_the_test_images() -> None:
    x, y = draw(80, 0, noise=3.0)
    score = logistic_probe(x, y, *draw(40, 1), cs=(1e-6, 0.1, 10.0), validation=0.3)
    generator = torch.Generator().manual_seed(0)
    test, labels = torch.randn(30, 6, generator=generator), torch.randint(4, (30,), generator=generator)
    other = logistic_probe(x, y, test, labels, cs=(1e-6, 0.1, 10.0), validation=0.3)
    assert (other.chosen, other.validation) == (score.chosen, score.validation)
    assert score.chosen == score.candidates[max(range(3), key=lambda i: score.validation[i])]
    # the chosen one has all of train again
    assert score.accuracy == logistic_probe(x, y, *draw(40, 1), cs=(score.chosen,)).accuracy


def test_classes_that_lie_apart_are_fitted_in_a_few_steps() -> None:
    x, y = draw(100, 0, classes=10, noise=0.1, dim=64)
    for c in (1.0, 1e4):
        weight, bias = fit_logistic(x.double(), y, num_classes=10, c=c, max_iterations=30)  # no warning
        assert torch.equal((x.double() @ weight.T + bias).argmax(1), y)


def test_what_newton_cannot_solve_goes_to_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = draw(60, 0)
    expected = fit_logistic(x.double(), y, num_classes=4, c=1.0)[0]
    asked = []
    monkeypatch.setattr(
        torch.linalg, "cholesky_ex", lambda bend: (asked.append(bend.shape), (bend, torch.tensor(1)))[1]
    )
    found = fit_logistic(x.double(), y, num_classes=4, c=1.0)[0]
    assert asked == [(28, 28)]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("solver")
def test_a_fit_that_is_cut_short_says_so() -> None:
    x, y = draw(60, 0)
    with pytest.warns(UserWarning, match=r"c=1\.0 is not at its optimum after 1 iterations"):
        logistic_probe(x, y, x, y, max_iterations=1)


def test_wrong_arguments() -> None:
    x, y = draw(20, 0)
    with pytest.raises(ValueError, match=r"cs=\(0\.0,\) must be several values, each above 0"):
        logistic_probe(x, y, x, y, cs=(0.0,))
    with pytest.raises(ValueError, match=r"test_labels must be classes 0\.\.3"):
        logistic_probe(x, y, x, y + 1)
    x[2, 0] = float("nan")
    with pytest.raises(ValueError, match="train features must be finite, but 1 of 20 rows"):
        logistic_probe(x, y, x, y)
