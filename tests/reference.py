"""Slow, obvious twins of the parts, in plain loops over Python numbers.

They restate what the methods' papers say, share no code with the library, and import nothing from it: a part is right
where it equals its twin.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
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


def cut_grid(images: Tensor, grid: tuple[int, int], crop: int = 0) -> Tensor:
    """Patches ``[B, N, C, p, q]`` of a grid with cells of ``N // G`` pixels; what is left right and below is lost."""
    cell = (images.shape[-2] // grid[0], images.shape[-1] // grid[1])
    return cut_patches(images[..., : grid[0] * cell[0], : grid[1] * cell[1]], cell, crop)


def cut_cells(images: Tensor, cell: Sequence[int], crop: int = 0) -> Tensor:
    """Patches ``[B, N, C, *cell - crop]`` of images of any number of axes, the last axis counted fastest."""
    low, counts = round(crop / 2), [length // size for length, size in zip(images.shape[2:], cell, strict=True)]
    patches = []
    for place in itertools.product(*(range(count) for count in counts)):
        starts = [number * size + low for number, size in zip(place, cell, strict=True)]
        patches.append(images[:, :, *(slice(s, s + size - crop) for s, size in zip(starts, cell, strict=True))])
    return torch.stack(patches, 1)


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


def blur_images(images: Tensor, size: int, sigma: float) -> Tensor:
    """Gaussian blur, pixel by pixel over a square kernel that adds up to 1; outside the image there are zeros."""
    reach, (height, width) = size // 2, images.shape[-2:]
    offsets = [(y, x) for y in range(-reach, reach + 1) for x in range(-reach, reach + 1)]
    kernel = {(y, x): math.exp(-(y * y + x * x) / (2 * sigma**2)) for y, x in offsets}
    total = sum(kernel.values())
    out = torch.zeros_like(images)
    for y in range(height):
        for x in range(width):
            for (down, right), weight in kernel.items():
                if 0 <= y + down < height and 0 <= x + right < width:
                    out[..., y, x] += weight / total * images[..., y + down, x + right]
    return out


def arrange_puzzle(logits: Tensor) -> list[list[int]]:
    """The patch at each place: of those whose likeliest place it is the surest one, or -1."""
    arranged = []
    for image in logits:
        board, surest = [-1] * image.shape[1], [0.0] * image.shape[1]
        for patch, row in enumerate(image.tolist()):
            place = row.index(max(row))
            sure = math.exp(row[place]) / sum(math.exp(x) for x in row)
            if sure > surest[place]:
                board[place], surest[place] = patch, sure
        arranged.append(board)
    return arranged


def top_accuracy(logits: Tensor, k: int) -> float:
    """Share of the tokens, dropped or not, whose own position is among the k highest logits."""
    hits = []
    for image in logits:
        for position, row in enumerate(image.tolist()):
            best = sorted(range(len(row)), key=lambda t: -row[t])[:k]
            hits.append(position in best)
    return sum(hits) / len(hits)


# --- partitioners -----------------------------------------------------------------------------------------------------


def square_ids(height: int, width: int, side: int) -> list[int]:
    """Which square each token lies in; squares are counted row by row."""
    corners = [(top, left) for top in range(0, height, side) for left in range(0, width, side)]
    ids = []
    for y in range(height):
        for x in range(width):
            ids += [k for k, (top, left) in enumerate(corners) if top <= y < top + side and left <= x < left + side]
    return ids


def cube_ids(sizes: Sequence[int], side: int) -> list[int]:
    """Which cube each token of a grid of any number of axes lies in; cubes count in raster order, too."""
    cubes = list(itertools.product(*(range(size // side) for size in sizes)))
    places = itertools.product(*(range(size) for size in sizes))
    return [cubes.index(tuple(x // side for x in place)) for place in places]


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


def prefix_masks(
    encoded: Sequence[int], predicted: Sequence[int], *, num_steps: int, num_prefix: int = 0
) -> tuple[list[list[bool]], list[list[bool]], list[list[bool]]]:
    """As ``causal_masks``, but all of the first ``num_steps`` steps see each other, and none of them is predicted."""
    group = {step: max(0, step - num_steps + 1) for step in (*encoded, *predicted)}
    return causal_masks([group[k] for k in encoded], [group[k] for k in predicted], num_prefix=num_prefix)


def full_masks(
    encoded: Sequence[int], predicted: Sequence[int], *, num_prefix: int = 0
) -> tuple[list[list[bool]], list[list[bool]], list[list[bool]], list[list[bool]]]:
    """Source, target, memory and feedback of one image: prefix and first step are seen by all, later content by none.

    Queries of later steps are seen by all; those of the first step, which is given, by themselves alone.
    """
    given = [True] * num_prefix + [k == 0 for k in encoded]
    source, memory = [list(given) for _ in given], [list(given) for _ in predicted]
    target = [[i == j or k > 0 for j, k in enumerate(predicted)] for i in range(len(predicted))]
    return source, target, memory, [[k > 0 for k in predicted] for _ in given]


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


def sincos_axes(sizes: Sequence[int], dim: int) -> list[list[float]]:
    """The table in any number of axes: an equal share of the channels for each, the last axis first."""
    share = dim // len(sizes) // 2
    rows = []
    for place in itertools.product(*(range(size) for size in sizes)):
        row = []
        for coordinate in reversed(place):
            row += [math.sin(coordinate / 10_000 ** (i / share)) for i in range(share)]
            row += [math.cos(coordinate / 10_000 ** (i / share)) for i in range(share)]
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


def query_step(block: nn.Module, g: Tensor, h: Tensor, mask: Tensor) -> Tensor:
    """SAIM's query block by the weights of timm's: ``g + attn(norm1(g), norm1(h))``, then ``g + mlp(norm2(g))``.

    One image: ``g`` is ``[t, D]``, ``h`` is ``[s, D]``, ``mask`` is ``[t, s]``.
    """
    attn, dim = block.attn, g.shape[-1]
    rows = attn.qkv.weight.split(dim), attn.qkv.bias.split(dim)  # queries, keys, values
    asked, seen = block.norm1(g), block.norm1(h)
    query, key, value = (x @ w.T + b for x, w, b in zip((asked, seen, seen), *rows, strict=True))
    width, heads = dim // attn.num_heads, []
    for head in range(attn.num_heads):
        part = slice(head * width, (head + 1) * width)
        scores = (query[:, part] @ key[:, part].T / math.sqrt(width)).masked_fill(~mask, -math.inf)
        heads.append(scores.softmax(-1).nan_to_num() @ value[:, part])  # softmax over nothing: 0
    g = g + torch.cat(heads, dim=-1) @ attn.proj.weight.T + attn.proj.bias
    return g + block.mlp(block.norm2(g))


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


def mean_of_values(
    predictions: Tensor, targets: Tensor, is_target: Tensor, error: Callable[[float, float], float]
) -> float:
    """Mean of an error over every value of every row that counts, in the whole batch; 0 where none counts."""
    errors = []
    for i in range(predictions.shape[0]):
        for j in range(predictions.shape[1]):
            if is_target[i, j]:
                row = zip(predictions[i, j].tolist(), targets[i, j].tolist(), strict=True)
                errors += [error(p, t) for p, t in row]
    return sum(errors) / len(errors) if errors else 0.0


def mean_cosine(predictions: Tensor, targets: Tensor, is_target: Tensor) -> float:
    """Mean of one minus the cosine over every row that counts, in the whole batch; 0 where none counts."""
    errors = []
    for i in range(predictions.shape[0]):
        for j in range(predictions.shape[1]):
            if is_target[i, j]:
                p, t = predictions[i, j].tolist(), targets[i, j].tolist()
                dot = sum(a * b for a, b in zip(p, t, strict=True))
                errors.append(1 - dot / (math.sqrt(sum(a * a for a in p)) * math.sqrt(sum(b * b for b in t))))
    return sum(errors) / len(errors) if errors else 0.0


def map_of_tokens(tokens: Tensor, height: int, width: int, num_prefix: int) -> Tensor:
    """Tokens behind the prefix laid out row by row, ``[B, D, height, width]``."""
    out = torch.zeros(tokens.shape[0], tokens.shape[2], height, width)
    for row in range(height):
        for column in range(width):
            out[:, :, row, column] = tokens[:, num_prefix + row * width + column]
    return out


def doubled(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Transposed convolution of kernel and stride 2: every cell becomes 2x2 cells, each by a matrix of its own."""
    out = torch.zeros(x.shape[0], weight.shape[1], 2 * x.shape[2], 2 * x.shape[3])
    for row in range(out.shape[2]):
        for column in range(out.shape[3]):
            cell = x[:, :, row // 2, column // 2]
            out[:, :, row, column] = cell @ weight[:, :, row % 2, column % 2] + bias
    return out


def halved(x: Tensor) -> Tensor:
    """Largest value of every 2x2 cells; a last odd row or column stands for itself."""
    rows, columns = -(-x.shape[2] // 2), -(-x.shape[3] // 2)
    out = torch.zeros(*x.shape[:2], rows, columns)
    for row in range(rows):
        for column in range(columns):
            out[:, :, row, column] = x[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].amax((2, 3))
    return out


def cell_means(x: Tensor, bins: int) -> Tensor:
    """Means of ``bins x bins`` cells that cover a map; where they do not divide it, neighbours share rows."""
    height, width = x.shape[2:]
    out = torch.zeros(*x.shape[:2], bins, bins)
    for i in range(bins):
        for j in range(bins):
            rows = slice(i * height // bins, -(-(i + 1) * height // bins))
            columns = slice(j * width // bins, -(-(j + 1) * width // bins))
            out[:, :, i, j] = x[:, :, rows, columns].mean((2, 3))
    return out


def overlaps(predicted: Tensor, masks: Tensor, num_classes: int, ignored: int) -> tuple[list[float | None], float]:
    """Intersection over union of each class (``None``: neither there nor predicted), and the share of right pixels."""
    pairs = [
        (p, m) for p, m in zip(predicted.flatten().tolist(), masks.flatten().tolist(), strict=True) if m != ignored
    ]
    each: list[float | None] = []
    for label in range(num_classes):
        both = sum(p == label and m == label for p, m in pairs)
        either = sum(p == label or m == label for p, m in pairs)
        each.append(both / either if either else None)
    return each, sum(p == m for p, m in pairs) / len(pairs)


def cross_entropy(predictions: Tensor, targets: Tensor, is_target: Tensor) -> float:
    """Mean over every row that counts, in the whole batch; 0 where none counts."""
    errors = []
    for i in range(predictions.shape[0]):
        for j in range(predictions.shape[1]):
            if is_target[i, j]:
                logits, wanted = predictions[i, j].tolist(), targets[i, j].tolist()
                total = math.log(sum(math.exp(x) for x in logits))
                errors.append(-sum(w * (x - total) for w, x in zip(wanted, logits, strict=True)))
    return sum(errors) / len(errors) if errors else 0.0


# --- the patch puzzle's transformer -----------------------------------------------------------------------------------


def layer_norm(values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Normalise one vector."""
    mean = sum(values.tolist()) / len(values)
    variance = sum((x - mean) ** 2 for x in values.tolist()) / len(values)
    return (values - mean) / math.sqrt(variance + 1e-5) * weight + bias


def post_norm_block(x: Tensor, weights: dict[str, Tensor], num_heads: int) -> Tensor:
    """One block over the tokens ``[n, D]`` of an image, without dropout: token by token, head by head."""
    n, dim = x.shape
    head, root = dim // num_heads, dim**0.25
    query, key, value = weights["qkv.weight"].split(dim)  # [D, D] each, none has a bias
    out = []
    for i in range(n):
        joined = []
        for h in range(num_heads):
            own = slice(h * head, (h + 1) * head)
            q = (query @ x[i])[own] / root
            scores = [math.exp(sum((q * (key @ x[j])[own] / root).tolist())) for j in range(n)]
            seen = sum(s / sum(scores) * (value @ x[j])[own] / root for j, s in enumerate(scores))
            joined.append(seen)
        attended = weights["proj.weight"] @ torch.cat(joined) + weights["proj.bias"]
        y = layer_norm(attended + x[i], weights["norm1.weight"], weights["norm1.bias"])
        inner = (weights["mlp.0.weight"] @ y + weights["mlp.0.bias"]).clamp(min=0)
        fed = weights["mlp.2.weight"] @ inner + weights["mlp.2.bias"]
        out.append(layer_norm(fed + y, weights["norm2.weight"], weights["norm2.bias"]))
    return torch.stack(out)


# --- distillation -----------------------------------------------------------------------------------------------------


def matched_places(student: Tensor, teacher: Tensor) -> list[int]:
    """For each region (row) of one view of an image the most similar one of another, by cosine."""
    places = []
    for row in student:
        cosines = [(row @ other / (row.norm() * other.norm())).item() for other in teacher]
        places.append(cosines.index(max(cosines)))
    return places


def distilled_cross_entropy(
    student: Tensor, teacher: Tensor, center: Tensor, student_temp: float, teacher_temp: float
) -> Tensor:
    """Of one row of the student with one row of the teacher, which gets no gradient."""
    wanted = ((teacher.detach() - center) / teacher_temp).softmax(0)
    return -(wanted * (student / student_temp).log_softmax(0)).sum()


def distillation_loss(
    student: dict[str, Sequence[Tensor]],
    teacher: dict[str, Sequence[Tensor]],
    centers: dict[str, Tensor],
    *,
    region_weight: float,
    student_temp: float,
    teacher_temp: float,
) -> Tensor:
    """EsViT's loss, pair by pair, image by image, region by region.

    Both dictionaries hold a list per view: ``features`` of regions ``[B, R, D]``, their logits ``regions [B, R, K]``,
    and the logits of the whole ``views [B, K]``. The first views of the student are those of the teacher.
    """
    temps = (student_temp, teacher_temp)
    losses = []
    for q in range(len(teacher["views"])):
        for v in range(len(student["views"])):
            if v == q:
                continue
            of_images = []
            for b in range(len(student["views"][v])):
                whole = distilled_cross_entropy(
                    student["views"][v][b], teacher["views"][q][b], centers["views"], *temps
                )
                places = matched_places(student["features"][v][b], teacher["features"][q][b])
                of_regions = [
                    distilled_cross_entropy(row, teacher["regions"][q][b][place], centers["regions"], *temps)
                    for row, place in zip(student["regions"][v][b], places, strict=True)
                ]
                regions = sum(of_regions) / len(of_regions)
                of_images.append((1 - region_weight) * whole + region_weight * regions)
            losses.append(sum(of_images) / len(of_images))
    return sum(losses) / len(losses)


# --- evaluation -------------------------------------------------------------------------------------------------------


def lars_step(
    values: list[float],
    gradient: list[float],
    momentum: list[float],
    lr: float,
    *,
    adapts: bool,
    decay: float = 0.0,
    trust: float = 0.001,
) -> tuple[list[float], list[float]]:
    """One step of LARS (momentum 0.9) on one parameter, as MAE's code has it."""
    gradient = [g + decay * v for g, v in zip(gradient, values, strict=True)] if adapts else gradient
    norm = math.sqrt(sum(v * v for v in values))
    slope = math.sqrt(sum(g * g for g in gradient))
    ratio = trust * norm / slope if adapts and norm > 0 and slope > 0 else 1.0
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


# --- parts of the gallery ---------------------------------------------------------------------------------------------


def nearest_center(values: Tensor, centers: Tensor) -> list[int]:
    """Number of the nearest centre of every value ``[n, P]``."""
    return [min(range(len(centers)), key=lambda k: float((value - centers[k]).square().sum())) for value in values]


def lloyd(values: Tensor, centers: Tensor, iterations: int) -> Tensor:
    """Cluster centres after some iterations; one without values stays."""
    centers = centers.clone()
    for _ in range(iterations):
        mine = nearest_center(values, centers)
        for k in range(len(centers)):
            own = [value for value, which in zip(values, mine, strict=True) if which == k]
            if own:
                centers[k] = torch.stack(own).mean(0)
    return centers


def histogram_of_gradients(image: Tensor, cell: int, bins: int) -> Tensor:
    """Histograms ``[cells down, cells across, C, bins]`` of an image ``[C, H, W]``, each of length 1."""
    channels, height, width = image.shape
    out = torch.zeros(height // cell, width // cell, channels, bins, dtype=image.dtype)
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                right, left = image[c, y, min(x + 1, width - 1)], image[c, y, max(x - 1, 0)]
                below, above = image[c, min(y + 1, height - 1), x], image[c, max(y - 1, 0), x]
                across, down = float(right - left), float(below - above)
                angle = math.atan2(down, across) % math.pi / math.pi
                out[y // cell, x // cell, c, min(int(angle * bins), bins - 1)] += math.hypot(across, down)
    return out / out.norm(dim=-1, keepdim=True).clamp(min=1e-6)


def cosine_transform(patch: Tensor) -> Tensor:
    """Orthonormal two-dimensional DCT-II of a patch ``[p, q]``."""
    p, q = patch.shape
    out = torch.zeros(p, q, dtype=torch.float64)
    for v in range(p):
        for u in range(q):
            total = 0.0
            for y in range(p):
                for x in range(q):
                    down = math.cos(math.pi / p * (y + 0.5) * v)
                    across = math.cos(math.pi / q * (x + 0.5) * u)
                    total += float(patch[y, x]) * down * across
            scale = math.sqrt((1 if v == 0 else 2) / p) * math.sqrt((1 if u == 0 else 2) / q)
            out[v, u] = scale * total
    return out


def superpixels(image: Tensor, shape: tuple[int, int], compactness: float, iterations: int) -> list[list[int]]:
    """Numbers of superpixels of an image ``[C, H, W]``: k-means over colour and place within two spacings."""
    _, height, width = image.shape
    spots = {
        (y, x): ((y + 0.5) * shape[0] / height, (x + 0.5) * shape[1] / width)
        for y in range(height)
        for x in range(width)
    }
    member = {pixel: int(row) * shape[1] + int(column) for pixel, (row, column) in spots.items()}
    for _ in range(iterations):
        centers: dict[int, tuple[Tensor, float, float]] = {}
        for k in set(member.values()):
            own = [pixel for pixel, which in member.items() if which == k]
            color = torch.stack([image[:, y, x] for y, x in own]).mean(0)
            rows, columns = ([spots[pixel][axis] for pixel in own] for axis in (0, 1))
            centers[k] = (color, sum(rows) / len(own), sum(columns) / len(own))
        for (y, x), (row, column) in spots.items():
            best, which = math.inf, member[y, x]
            for k, (color, down, across) in sorted(centers.items()):
                near = abs(row - down) <= 1 and abs(column - across) <= 1
                place = compactness**2 * ((row - down) ** 2 + (column - across) ** 2)
                distance = math.sqrt(float((image[:, y, x] - color).square().sum()) + place) + (0 if near else 1e6)
                if distance < best:
                    best, which = distance, k
            member[y, x] = which
    return [[member[y, x] for x in range(width)] for y in range(height)]


def contrast(embeddings: Tensor, temperature: float) -> float:
    """SimCLR's loss of embeddings ``[B, V, D]``."""
    rows = [(i, embeddings[i, v] / embeddings[i, v].norm()) for i in range(len(embeddings)) for v in range(2)]
    losses = []
    for a, (image, ours) in enumerate(rows):
        scores = {b: float(ours @ theirs) / temperature for b, (_, theirs) in enumerate(rows) if b != a}
        (twin,) = (b for b, (other, _) in enumerate(rows) if other == image and b != a)
        losses.append(math.log(sum(math.exp(score) for score in scores.values())) - scores[twin])
    return sum(losses) / len(losses)


def variance_invariance_covariance(embeddings: Tensor) -> tuple[float, float, float]:
    """VICReg's three terms of two views ``[B, 2, D]``: invariance, variance, covariance."""
    first, second = embeddings[:, 0], embeddings[:, 1]
    terms = []
    for view in (first, second):
        covariance = torch.cov(view.T)
        lacking = sum(max(0.0, 1 - math.sqrt(float(covariance[d, d]) + 1e-4)) for d in range(len(covariance)))
        others = float(covariance.square().sum() - covariance.diagonal().square().sum())
        terms.append((lacking / len(covariance), others / len(covariance)))
    return float((first - second).square().mean()), sum(t[0] for t in terms) / 2, sum(t[1] for t in terms)


def spread(embeddings: Tensor) -> float:
    """KoLeo: minus the mean log distance to the nearest other embedding on the sphere."""
    unit = [row / row.norm() for row in embeddings]
    near = [min(float((a - b).norm()) for j, b in enumerate(unit) if j != i) for i, a in enumerate(unit)]
    return -sum(math.log(distance + 1e-8) for distance in near) / len(near)


def epps_pulley(values: list[float], knots: int, reach: float) -> float:
    """Distance of values from a standard normal by characteristic functions, times their number."""
    points = [-reach + 2 * reach * k / (knots - 1) for k in range(knots)]

    def height(t: float) -> float:
        cosine = sum(math.cos(t * x) for x in values) / len(values)
        sine = sum(math.sin(t * x) for x in values) / len(values)
        normal = math.exp(-t * t / 2)
        return ((cosine - normal) ** 2 + sine**2) * normal

    return len(values) * sum((b - a) * (height(a) + height(b)) / 2 for a, b in itertools.pairwise(points))


# --- quality of features ----------------------------------------------------------------------------------------------


def entropy_rank(values: Sequence[float], epsilon: float = 0.0) -> float:
    """``exp`` of the entropy of values as shares of their sum, each plus ``epsilon``."""
    shares = [value / sum(values) + epsilon for value in values]
    return math.exp(-sum(share * math.log(share) for share in shares if share > 0))


def covariance(features: Tensor) -> Tensor:
    """Mean products of deviations from the mean ``[D, D]``, in float64."""
    count, wide = features.shape
    rows = [[float(value) for value in row] for row in features]
    mean = [sum(row[k] for row in rows) / count for k in range(wide)]
    out = torch.zeros(wide, wide, dtype=torch.float64)
    for i in range(wide):
        for j in range(wide):
            out[i, j] = sum((row[i] - mean[i]) * (row[j] - mean[j]) for row in rows) / count
    return out


def power_law(variances: Sequence[float], first: int, last: int) -> float:
    """Exponent of ``variance = c / rank ** alpha``, by least squares of logarithms with weights ``1 / rank``."""
    points = [
        (math.log(rank), math.log(variances[rank - 1]), 1 / rank)
        for rank in range(first, min(last, len(variances)) + 1)
    ]
    total = sum(w for _, _, w in points)
    x_mean, y_mean = sum(w * x for x, _, w in points) / total, sum(w * y for _, y, w in points) / total
    slope = sum(w * (x - x_mean) * (y - y_mean) for x, y, w in points) / sum(
        w * (x - x_mean) ** 2 for x, _, w in points
    )
    return -slope


def on_sphere(features: Tensor) -> list[list[float]]:
    """Rows at length 1."""
    rows = [[float(value) for value in row] for row in features]
    return [[value / math.sqrt(sum(v * v for v in row)) for value in row] for row in rows]


def squared_distance(one: Sequence[float], other: Sequence[float]) -> float:
    """Sum of squared differences."""
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))


def pair_potential(features: Tensor, t: float) -> float:
    """Logarithm of the mean of ``exp(-t |x - y|²)`` over pairs of different rows of length 1."""
    potentials = [math.exp(-t * squared_distance(x, y)) for x, y in itertools.combinations(on_sphere(features), 2)]
    return math.log(sum(potentials) / len(potentials))


def pair_distance(first: Tensor, second: Tensor, alpha: float) -> float:
    """Mean of ``|x - y| ** alpha`` over rows of the same place, of length 1."""
    pairs = zip(on_sphere(first), on_sphere(second), strict=True)
    return sum(math.sqrt(squared_distance(x, y)) ** alpha for x, y in pairs) / len(first)
