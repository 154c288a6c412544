"""Slow, obvious twins of the parts, in plain loops over Python numbers.

They restate what the methods' papers say, share no code with the library, and import nothing from it: a part is right
where it equals its twin.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import CenterCrop

# --- tokenizers and targets -------------------------------------------------------------------------------------------


def cut_patches(images: Tensor, cell: tuple[int, int], crop: int = 0) -> Tensor:
    """Patches ``[B, N, C, p, q]``, row by row; ``crop`` pixels in total are taken off by torchvision's centre crop."""
    height, width = images.shape[-2:]
    batch = []
    for image in images:
        patches = []
        for top in range(0, height, cell[0]):
            for left in range(0, width, cell[1]):
                patch = image[:, top : top + cell[0], left : left + cell[1]]
                patches.append(CenterCrop((cell[0] - crop, cell[1] - crop))(patch) if crop else patch)
        batch.append(torch.stack(patches))
    return torch.stack(batch)


def pixel_target(patches: Tensor, *, normalize: bool) -> Tensor:
    """Values of each patch ``[B, N, p*q*C]`` in the order (y, x, c); normalised as MAE does (unbiased variance)."""
    b, n, c, p, q = patches.shape
    out = torch.zeros(b, n, p * q * c, dtype=patches.dtype)
    for i in range(b):
        for j in range(n):
            values = [patches[i, j, k, y, x].item() for y in range(p) for x in range(q) for k in range(c)]
            if normalize:
                mean = sum(values) / len(values)
                variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
                values = [(v - mean) / math.sqrt(variance + 1e-6) for v in values]
            out[i, j] = torch.tensor(values, dtype=patches.dtype)
    return out


# --- partitioners -----------------------------------------------------------------------------------------------------


def square_ids(height: int, width: int, side: int) -> list[int]:
    """Which square each token lies in; squares are counted row by row."""
    corners = [(top, left) for top in range(0, height, side) for left in range(0, width, side)]
    ids = []
    for y in range(height):
        for x in range(width):
            ids += [k for k, (top, left) in enumerate(corners) if top <= y < top + side and left <= x < left + side]
    return ids


def token_points(height: int, width: int) -> list[tuple[float, float]]:
    """Token coordinates (row, column): the first token at (-2, -2), the last at (2, 2), evenly spaced between."""

    def spread(count: int) -> list[float]:
        return [-2 + 4 * i / (count - 1) for i in range(count)] if count > 1 else [-2.0]

    return [(y, x) for y in spread(height) for x in spread(width)]


def nearest_gaussians(
    points: Sequence[Sequence[float]], means: Sequence[Sequence[float]], stds: Sequence[Sequence[float]]
) -> list[int]:
    """For each point the Gaussian of the smallest Mahalanobis distance: no log-determinant, no weight."""
    ids = []
    for point in points:
        distances = [
            math.sqrt(sum(((p - m) / s) ** 2 for p, m, s in zip(point, mean, std, strict=True)))
            for mean, std in zip(means, stds, strict=True)
        ]
        ids.append(distances.index(min(distances)))
    return ids


def subset_ids(ranks: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """The subset of each token: the ``sizes[0]`` tokens of lowest rank are 0, the next ``sizes[1]`` are 1, ..."""
    labels = [k for k, size in enumerate(sizes) for _ in range(size)]
    return [labels[rank] for rank in ranks]


# --- serializers ------------------------------------------------------------------------------------------------------


def check_reading(levels: Sequence[Sequence[int]], order: Sequence[int], step: Sequence[int]) -> None:
    """Assert that one image's order and step read its segments legally; ``levels`` are ids, finest first."""
    assert sorted(order) == list(range(len(levels[0]))), "order must hold every position once"
    assert step[0] == 0, "steps must start from 0"
    for before, after in itertools.pairwise(step):
        assert after - before in (0, 1), "steps must be dense and never fall: empty segments are left out"
    for slot, position in enumerate(order):
        for other_slot, other in enumerate(order):
            same_segment = levels[0][position] == levels[0][other]
            assert same_segment == (step[slot] == step[other_slot]), "one step must be one segment"
    for ids in levels:
        read = [ids[position] for position in order]
        runs = [k for i, k in enumerate(read) if i == 0 or read[i - 1] != k]
        assert len(runs) == len(set(runs)), "a segment or partition must be read in one go"


def ordered_reading(levels: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """Order and step of one image whose segments are read by ascending id, coarsest level first."""
    keys = list(zip(*reversed(levels), strict=True))
    order = sorted(range(len(keys)), key=lambda position: (keys[position], position))
    present = sorted(set(keys))
    return order, [present.index(keys[position]) for position in order]


# --- masks ------------------------------------------------------------------------------------------------------------


def causal_masks(
    encoded: Sequence[int], predicted: Sequence[int], *, num_prefix: int = 0, predict_first: bool = False
) -> tuple[list[list[bool]], list[list[bool]], list[list[bool]]]:
    """Source, target and memory mask of one image from the steps of its encoded and predicted slots."""
    keys = [-1] * num_prefix + list(encoded)
    source = [[k <= q for k in keys] for q in keys]
    target = []
    for i, q in enumerate(predicted):
        row = []
        for j, k in enumerate(predicted):
            hidden = k == 0 and not predict_first  # a query that is not predicted: no one sees it but itself
            row.append(i == j or (k <= q and not hidden))
        target.append(row)
    memory = [[k < q for k in keys] for q in predicted]
    return source, target, memory


# --- positions --------------------------------------------------------------------------------------------------------


def sincos_rows(height: int, width: int, dim: int) -> list[list[float]]:
    """MAE's table: the first half of the channels codes the column, the second the row; sines, then cosines."""
    frequencies = [1 / 10_000 ** (i / (dim // 4)) for i in range(dim // 4)]
    rows = []
    for y in range(height):
        for x in range(width):
            row = []
            for coordinate in (x, y):
                row += [math.sin(coordinate * f) for f in frequencies]
                row += [math.cos(coordinate * f) for f in frequencies]
            rows.append(row)
    return rows


# --- attention, routers, losses ---------------------------------------------------------------------------------------


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    """Softmax attention ``[B, H, Q, e]``, one query at a time; a query that may attend to nothing yields 0."""
    b, h, n, d = query.shape
    m = key.shape[2]
    factor = 1 / math.sqrt(d) if scale is None else scale
    mask = torch.ones(b, h, n, m, dtype=torch.bool) if mask is None else mask.expand(b, h, n, m)
    out = torch.zeros(b, h, n, value.shape[-1], dtype=value.dtype)
    for i in range(b):
        for j in range(h):
            for q in range(n):
                scores = {}
                for k in range(m):
                    score = factor * sum((query[i, j, q, x] * key[i, j, k, x]).item() for x in range(d))
                    extra = mask[i, j, q, k].item()
                    if mask.dtype == torch.bool:
                        extra = 0.0 if extra else -math.inf
                    if extra > -math.inf:
                        scores[k] = score + extra
                total = sum(math.exp(s) for s in scores.values())
                for k, s in scores.items():
                    out[i, j, q] += math.exp(s) / total * value[i, j, k]
    return out


def mix_layers(
    hidden: Sequence[Tensor], norm: Callable[[Tensor], Tensor], weight: Tensor, bias: Tensor
) -> list[Tensor]:
    """Memory of decoder layer l: ``sum_k weight[l, k] norm(hidden[k]) + bias[l]``."""
    memories = []
    for row, shift in zip(weight, bias, strict=True):
        memory = torch.zeros_like(hidden[0]) + shift
        for factor, states in zip(row, hidden, strict=True):
            memory = memory + factor * norm(states)
        memories.append(memory)
    return memories


def mean_squared_error(predictions: Tensor, targets: Tensor, is_target: Tensor) -> float:
    """Mean over every value of every row that counts, in the whole batch; 0 where none counts."""
    errors = []
    for i in range(predictions.shape[0]):
        for j in range(predictions.shape[1]):
            if is_target[i, j]:
                row = zip(predictions[i, j].tolist(), targets[i, j].tolist(), strict=True)
                errors += [(p - t) ** 2 for p, t in row]
    return sum(errors) / len(errors) if errors else 0.0


# --- evaluation -------------------------------------------------------------------------------------------------------


def lars_step(
    values: list[float], gradient: list[float], momentum: list[float], lr: float, *, adapts: bool
) -> tuple[list[float], list[float]]:
    """One step of LARS (momentum 0.9, trust coefficient 0.001, no weight decay) on one parameter."""
    norm = math.sqrt(sum(v * v for v in values))
    slope = math.sqrt(sum(g * g for g in gradient))
    ratio = 0.001 * norm / slope if adapts and norm > 0 and slope > 0 else 1.0
    momentum = [0.9 * m + ratio * g for m, g in zip(momentum, gradient, strict=True)]
    return [v - lr * m for v, m in zip(values, momentum, strict=True)], momentum


def warm_cosine(step: int, num_steps: int, warmup_steps: int) -> float:
    """Share of the learning rate: linear from 0, then half a cosine to 0."""
    if step < warmup_steps:
        return step / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (num_steps - warmup_steps)))


def normalised_columns(rows: Tensor) -> Tensor:
    """Each column with mean 0 and deviation 1 (of the population; 1e-6 inside the root)."""
    out = torch.zeros_like(rows)
    for column in range(rows.shape[1]):
        values = rows[:, column].tolist()
        mean = sum(values) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / len(values)
        out[:, column] = torch.tensor([(v - mean) / math.sqrt(variance + 1e-6) for v in values])
    return out


# --- inputs for property tests ----------------------------------------------------------------------------------------


@st.composite
def hierarchies(draw: st.DrawFn, max_levels: int = 3) -> tuple[list[list[list[int]]], list[int]]:
    """Nested ids ``levels[level][image][position]`` with gaps and empty segments, and the counts per level."""
    images, tokens = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    counts = [draw(st.integers(1, 6)) for _ in range(draw(st.integers(1, max_levels)))]
    levels = [[[draw(st.integers(0, counts[0] - 1)) for _ in range(tokens)] for _ in range(images)]]
    for fine, coarse in itertools.pairwise(counts):
        level = []
        for ids in levels[-1]:
            parent = [draw(st.integers(0, coarse - 1)) for _ in range(fine)]
            level.append([parent[k] for k in ids])
        levels.append(level)
    return levels, counts


@st.composite
def dense_steps(draw: st.DrawFn) -> list[list[int]]:
    """Steps of each slot of 1 to 4 images: from 0, rising by 0 or 1."""
    images, tokens = draw(st.integers(1, 4)), draw(st.integers(1, 10))
    batch = []
    for _ in range(images):
        step = [0]
        for _ in range(tokens - 1):
            step.append(step[-1] + draw(st.integers(0, 1)))
        batch.append(step)
    return batch
