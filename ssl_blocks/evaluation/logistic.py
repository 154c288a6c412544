"""Logistic regression on frozen features, fitted to its optimum."""

import warnings
from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Gt, Lt
from jaxtyping import Float, Int
from torch import Tensor

from ssl_blocks.bounds import Count, Positive, Seed
from ssl_blocks.doors import checked
from ssl_blocks.evaluation.checks import check_splits
from ssl_blocks.evaluation.sweep import SweepScore, sweep
from ssl_blocks.randomness import seeded_generator

MOST_UNKNOWNS, MOST_ENTRIES = 1536, 2**24  # up to which Newton's method is faster


@checked
def logistic_probe(
    train: Float[Tensor, "n d"],
    train_labels: Int[Tensor, " n"],
    test: Float[Tensor, "m d"],
    test_labels: Int[Tensor, " m"],
    *,
    cs: Sequence[Positive] = (1.0,),
    standardize: bool = True,
    validation: Annotated[float, Gt(0), Lt(1)] = 0.1,
    max_iterations: Count = 1000,
    seed: Seed = 0,
    device: torch.device | str = "cpu",
) -> SweepScore:
    """Fit a logistic regression with an L2 penalty by LBFGS, and score it on the test features.

    It has one optimum, so that nothing depends on learning rates, batches or epochs.

    Args:
        train: ``[N, D]`` features.
        train_labels: ``[N]`` class indices; there is one class more than the highest.
        test: ``[M, D]``.
        test_labels: ``[M]`` class indices.
        cs: inverse strengths of the penalty, scikit-learn's ``C``. Of several, the one that does best on images held
            out of train is fitted again to all of train.
        standardize: whether features get mean 0 and deviation 1, by the statistics of those that are fitted.
        validation: share of each class that is held out where there are several ``cs``.
        max_iterations: of LBFGS.
        seed: decides what is held out.
        device: where it is fitted, in float64.

    Raises:
        ValueError: if shapes do not fit together, labels are missing, a test label is unknown to the head, or a
            number is out of range.

    Examples:
        >>> x, y = torch.tensor([[0.0], [0.1], [5.0], [5.1]]), torch.tensor([0, 0, 1, 1])
        >>> logistic_probe(x, y, x, y).accuracy
        1.0
    """
    if len(cs) == 0:
        raise ValueError("cs=() must be at least one number")
    num_classes = check_splits(train, train_labels, test, test_labels)
    train, test = (x.detach().to(device, torch.float64) for x in (train, test))
    labels = train_labels.to(device)

    def predict(c: float, fitted: Tensor, held: Tensor | None) -> Tensor:
        x, y, unseen = train[fitted], labels[fitted], test if held is None else train[held]
        return classify(x, y, unseen, c=c, standardize=standardize, max_iterations=max_iterations)

    generator, truth = seeded_generator("cpu", seed), train_labels.cpu()
    return sweep(predict, cs, truth, test_labels, validation=validation, num_classes=num_classes, generator=generator)


def classify(
    features: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    unseen: Float[Tensor, "m d"],
    *,
    c: float,
    standardize: bool = True,
    max_iterations: int = 1000,
) -> Int[Tensor, " m"]:
    """Fit a logistic regression in float64 as `logistic_probe`, and classify ``unseen`` features ``[M, D]`` by it.

    It knows the classes that ``labels`` name, which may have gaps.
    """
    if standardize:
        std = features.std(0, correction=0)
        center, spread = features.mean(0), torch.where(std > 0, std, 1.0)
        features, unseen = (features - center) / spread, (unseen - center) / spread
    classes = torch.tensor(sorted(set(labels.tolist())), device=labels.device)
    places = torch.searchsorted(classes, labels)
    weight, bias = fit_logistic(features, places, num_classes=len(classes), c=c, max_iterations=max_iterations)
    found: Tensor = classes[F.linear(unseen, weight, bias).argmax(1)]
    return found


def fit_logistic(
    features: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    *,
    num_classes: int,
    c: float,
    max_iterations: int = 1000,
    tolerance: float = 1e-7,
) -> tuple[Float[Tensor, "k d"], Float[Tensor, " k"]]:
    """Minimise scikit-learn's ``C * sum of cross entropies + |weight|² / 2``; the bias is free of the penalty.

    More features than images cost no more than as many. Small problems are solved by Newton's method, in a few steps;
    others by LBFGS. A warning tells where the iterations do not suffice. Weight ``[K, D]`` and bias ``[K]`` count as
    solved where the largest entry of the objective's gradient, divided by ``C * N``, is within ``tolerance``.
    """
    if features.shape[1] > len(features):  # weights lie in the span of the rows: solved there, in as many numbers
        span, rows = torch.linalg.qr(features.T)
        weight, bias = fit_logistic(
            rows.T, labels, num_classes=num_classes, c=c, max_iterations=max_iterations, tolerance=tolerance
        )
        return weight @ span.T, bias
    # for two classes scikit-learn penalises one weight, half the difference of ours: twice as much
    strength = (2 if num_classes == 2 else 1) / (c * len(features))
    # a system of equations in all weights at once, where it is worth its time and memory
    unknowns = num_classes * (features.shape[1] + 1)
    is_small = unknowns <= MOST_UNKNOWNS and unknowns * len(features) <= MOST_ENTRIES
    solve = _by_newton if is_small and features.dtype == torch.float64 else _by_lbfgs
    weight, bias = solve(features, labels, num_classes, strength, max_iterations, tolerance)
    error = (F.linear(features, weight, bias).softmax(1) - F.one_hot(labels, num_classes)) / len(features)
    steepest = max(float((error.T @ features + strength * weight).abs().max()), float(error.sum(0).abs().max()))
    if steepest > 10 * tolerance:
        warnings.warn(
            f"logistic regression with c={c} is not at its optimum after {max_iterations} iterations "
            f"(gradient {steepest:.1e})",
            stacklevel=2,
        )
    return weight, bias


def _by_newton(
    features: Tensor, labels: Tensor, num_classes: int, strength: float, max_iterations: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Weight and bias at the optimum, by steps that solve for all of them at once."""
    count, k, wide = len(features), num_classes, features.shape[1] + 1
    rows = torch.cat([features, features.new_ones(count, 1)], 1)  # the bias is a weight of its own
    penalty = torch.full_like(rows[:1], strength).index_fill(1, torch.tensor([wide - 1], device=rows.device), 0.0)
    truth = F.one_hot(labels, k).to(rows.dtype)
    weight, each = rows.new_zeros(k, wide), torch.arange(k, device=rows.device)

    def loss(weight: Tensor) -> Tensor:
        return F.cross_entropy(rows @ weight.T, labels) + (penalty * weight.square()).sum() / 2

    for _ in range(max_iterations):
        shares = (rows @ weight.T).softmax(1)
        slope = (shares - truth).T @ rows / count + penalty * weight
        if float(slope.abs().max()) <= tolerance:
            break
        spread = (shares[:, :, None] * rows[:, None]).flatten(1)
        bend = (-(spread.T @ spread) / count).view(k, wide, k, wide)
        bend[each, :, each] += torch.einsum("nk,nd,ne->kde", shares, rows, rows) / count
        bend[:, -1, :, -1] += 1 / k  # the same added to every bias changes nothing: it stays as it is
        bend = bend.view(k * wide, k * wide)
        bend.diagonal().add_(penalty.expand(k, wide).flatten())
        factor, failed = torch.linalg.cholesky_ex(bend)
        if failed:  # flat but for rounding
            return _by_lbfgs(features, labels, num_classes, strength, max_iterations, tolerance)
        step = torch.cholesky_solve(slope.reshape(-1, 1), factor).view(k, wide)
        now, fall, size = loss(weight), (slope * step).sum(), 1.0
        while size > 1e-8 and loss(weight - size * step) > now - 1e-4 * size * fall + 1e-13:
            size /= 2
        weight = weight - size * step
    return weight[:, :-1], weight[:, -1]


def _by_lbfgs(
    features: Tensor, labels: Tensor, num_classes: int, strength: float, max_iterations: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Weight and bias close to the optimum, in memory that grows with their number alone."""
    # the same objective in other coordinates, by the root of the inverse of a bound on its curvature (Boehning 1992),
    # then about 1 at most in every direction: features which say nearly the same do not need thousands of steps
    values, vectors = torch.linalg.eigh(features.T @ features / (2 * len(features)))
    bound = values.clamp(min=0) + strength
    root: Tensor = vectors * bound.rsqrt() @ vectors.T
    spread = features @ root
    turned = features.new_zeros(num_classes, features.shape[1], requires_grad=True)
    bias = features.new_zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [turned, bias],
        max_iter=max_iterations,
        max_eval=2 * max_iterations,
        tolerance_grad=tolerance / max(1.0, float(bound.max().sqrt())),  # as much larger a gradient can be elsewhere
        tolerance_change=0.0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        # divided by C * N, so that steps and tolerance do not depend on the number of images
        loss = F.cross_entropy(F.linear(spread, turned, bias), labels)
        loss = loss + (turned @ root).square().sum() * strength / 2
        torch.autograd.backward(loss)
        return loss

    optimizer.step(objective)  # type: ignore[no-untyped-call]
    return turned.detach() @ root, bias.detach()
