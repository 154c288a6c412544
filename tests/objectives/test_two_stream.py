"""Two streams through one encoder: equal to a loop over steps, causal, and the same sliced or at full length."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

import ssl_blocks as sb
from ssl_blocks.parts.read import joint_mask
from ssl_blocks.testing import LeakError, assert_no_leak
from tests.recipes import gradients, images

SQUARES, BLOBS = sb.SquarePartitioner(sides=(2,)), sb.BlobPartitioner(counts=(5,))
CASES = {
    "squares": (SQUARES, {}),
    "squares 16->4": (sb.SquarePartitioner(sides=(1, 2)), {}),
    "tokens": (sb.TokenPartitioner(), {}),
    "blobs": (BLOBS, {}),
    "class token": (SQUARES, {"class_token": True}),
    "class and register tokens, blobs": (BLOBS, {"class_token": True, "reg_tokens": 2}),
    "first segment too": (SQUARES, {"class_token": True, "predict_first": True}),
    "first segment too, blobs": (BLOBS, {"class_token": True, "predict_first": True}),
    "learned positions": (SQUARES, {"positions": "learned"}),
}


def build(
    partitioner: sb.parts.SegmentPartitioner = SQUARES,
    *,
    image_size: int = 8,
    predict_first: bool = False,
    mask: sb.parts.MaskBuilder | None = None,
    **model,
) -> sb.SegmentPrediction:
    torch.manual_seed(0)
    tokenizer = sb.PatchTokenizer(image_size=image_size, patch_size=2)
    model = {"embed_dim": 16, "depth": 2, "num_heads": 2} | model
    return sb.SegmentPrediction(
        encoder=sb.encoders.timm_vit(image_size=image_size, patch_size=2, **model),
        reader=sb.QueryReader(model["embed_dim"]),
        tokenizer=tokenizer,
        partitioner=partitioner,
        target=sb.PixelTarget(tokenizer, normalize=True),
        mask=mask,
        predict_first=predict_first,
    )


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=CASES)
def objective(request: pytest.FixtureRequest) -> sb.SegmentPrediction:
    partitioner, options = CASES[request.param]
    return build(partitioner, **options)


def by_steps(objective: sb.SegmentPrediction, batch: Tensor, draw: sb.Serialization) -> list[dict[int, Tensor]]:
    """Prediction of every predicted position, per image, a run of the model for each step.

    What is not yet known when a step is predicted is not there: no content of this step or later ones, and no query of
    later ones. Each row carries its stream and step, and a loop over pairs of rows says who sees whom.
    """
    vit, images_ = objective.encoder.module, []
    table = vit.pos_embed[0, -vit.patch_embed.num_patches :]
    first = 0 if objective.predict_first else 1
    for image, order, steps in zip(batch, draw.order.tolist(), draw.step.tolist(), strict=True):
        tokens, found = vit.patch_embed(image[None])[0], {}
        prefix = [] if vit.cls_token is None else [vit.cls_token[0, 0] + vit.pos_embed[0, 0]]
        prefix += [] if vit.reg_token is None else list(vit.reg_token[0] + vit.pos_embed[0, len(prefix) :][:2])
        for step in range(first, max(steps) + 1):
            rows = [(x, "content", -1) for x in prefix]
            rows += [(tokens[i] + table[i], "content", s) for i, s in zip(order, steps, strict=True) if s < step]
            asked = [(i, s) for i, s in zip(order, steps, strict=True) if first <= s <= step]
            rows += [(objective.reader.query[0, 0] + table[i], "query", s) for i, s in asked]
            mask = torch.zeros(len(rows), len(rows), dtype=torch.bool)
            for q, (_, q_stream, q_step) in enumerate(rows):
                for k, (_, k_stream, k_step) in enumerate(rows):
                    if k_stream == "content":
                        mask[q, k] = k_step <= q_step if q_stream == "content" else k_step < q_step
                    else:
                        mask[q, k] = q_stream == "query" and k_step <= q_step
            x = torch.stack([row for row, _, _ in rows])[None]
            for block in vit.blocks:
                x = block(x, attn_mask=mask)
            predicted = objective.head(vit.norm(x))[0, -len(asked) :]
            found |= {i: row for (i, s), row in zip(asked, predicted, strict=True) if s == step}
        images_.append(found)
    return images_


def test_it_equals_a_loop_over_steps(objective: sb.SegmentPrediction) -> None:
    objective, batch = objective.double(), images(2, 8, dtype=torch.float64)
    draw = objective.draw(batch, generator=seeded())
    out = objective(batch, draw)
    for image, expected in enumerate(by_steps(objective, batch, draw)):
        rows = out.is_target[image]
        assert sorted(expected) == sorted(out.index[image][rows].tolist())
        wanted = torch.stack([expected[i] for i in out.index[image][rows].tolist()])
        torch.testing.assert_close(out.predictions[image][rows], wanted, rtol=0, atol=1e-10)
    goal = sb.values.gather_tokens(objective.target(batch), out.index)
    torch.testing.assert_close(out.loss, (out.predictions - goal).square().mean(-1)[out.is_target].mean())


@pytest.mark.parametrize("name", ["class and register tokens, blobs", "first segment too, blobs"])
def test_it_leaks_nothing(name: str) -> None:
    partitioner, options = CASES[name]
    objective = build(partitioner, **options)
    assert_no_leak(objective, images(2, 8), generator=seeded(), draws=2)


class Altered:
    """The causal mask, wrong in one way."""

    def __init__(self, **changes) -> None:
        self.changes = changes

    def __call__(self, serialization, encoded, predicted, num_prefix, predict_first=False):
        masks = sb.SegmentCausalMask()(serialization, encoded, predicted, num_prefix, predict_first)
        source = nn.functional.pad(serialization.step[:1, encoded], (num_prefix, 0), value=-1)
        target = serialization.step[:1, predicted]
        return dataclasses.replace(masks, **{name: change(source, target) for name, change in self.changes.items()})


def every(queries: Tensor, keys: Tensor, compare) -> Tensor:
    return compare(keys[:, None, None, :], queries[:, None, :, None])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": lambda source, target: every(target, source, torch.le)}, "depends on position"),
        ({"source": lambda source, target: every(source, source, torch.ge)}, "depends on position"),
        ({"target": lambda source, target: every(target, target - 1, torch.le)}, "depends on position"),
        ({"memory": lambda source, target: every(target - 1, source, torch.lt)}, "does not depend on position"),
    ],
    ids=["query sees its own content", "content sees the future", "query sees the next ones", "too strict"],
)
def test_wrong_masks_are_found(options: dict, message: str) -> None:
    with pytest.raises(LeakError, match=message):
        assert_no_leak(build(mask=Altered(**options)), images(2, 8), generator=seeded())


def test_content_that_sees_queries_leaks(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = build(depth=3)  # content to query, query to earlier content, and that to its queries
    assert_no_leak(objective, images(2, 8), generator=seeded(), draws=2)

    def open_mask(masks: sb.AttentionMasks) -> Tensor:
        mask, content = joint_mask(masks).clone(), masks.source.shape[-1]
        mask[..., :content, content:] = True
        return mask

    monkeypatch.setattr("ssl_blocks.parts.read.joint_mask", open_mask)
    with pytest.raises(LeakError, match="depends on position"):
        assert_no_leak(objective, images(2, 8), generator=seeded(), draws=2)


def test_a_class_token_that_sees_patches_leaks() -> None:
    def open_first(source: Tensor, target: Tensor) -> Tensor:
        return every(source, source, torch.le) | (source < 0)[:, None, :, None]

    objective = build(class_token=True, mask=Altered(source=open_first))
    with pytest.raises(LeakError, match="depends on position"):
        assert_no_leak(objective, images(2, 8), generator=seeded(), draws=2)


def test_exchanging_or_merging_later_segments_changes_no_earlier_prediction(
    objective: sb.SegmentPrediction,
) -> None:
    objective, batch = objective.double(), images(3, 8, dtype=torch.float64)
    draw = dataclasses.replace(objective.draw(batch, generator=seeded()), step_sizes=None)
    last = draw.step.amax(1, keepdim=True)
    key, slots = (draw.step + 2 * (draw.step == last - 1)).sort(dim=1, stable=True)
    step = torch.where(key == last, last - 1, key.minimum(last))
    exchanged = sb.Serialization(order=draw.order.gather(1, slots), step=step)
    merged = dataclasses.replace(draw, step=draw.step.minimum(last - 1))
    early = (draw.step < last - 1)[..., None]
    before = objective(batch, draw).predictions
    for other in (exchanged, merged):
        after = objective(batch, other).predictions
        torch.testing.assert_close(after * early, before * early, rtol=0, atol=1e-12)
        assert not torch.allclose(after, before)


@pytest.mark.parametrize("name", ["squares", "tokens", "class token", "first segment too", "learned positions"])
def test_the_full_length_path_equals_the_sliced_one(name: str) -> None:
    partitioner, options = CASES[name]
    objective = build(partitioner, **options).double()
    batch = images(3, 8, dtype=torch.float64)
    draw = objective.draw(batch, generator=seeded())
    full = dataclasses.replace(draw, step_sizes=None)
    assert draw.windows(objective.predict_first) != full.windows(objective.predict_first)
    (loss, ours), (full_loss, theirs) = gradients(objective, batch, draw), gradients(objective, batch, full)
    torch.testing.assert_close(loss, full_loss, rtol=0, atol=1e-12)
    for key, value in ours.items():
        size = max(1.0, float(value.abs().max()))
        torch.testing.assert_close(value, theirs[key], rtol=0, atol=1e-12 * size, msg=key)


def test_an_image_gets_the_same_predictions_alone_and_in_its_batch(objective: sb.SegmentPrediction) -> None:
    batch = images(3, 8)
    draw = objective.draw(batch, generator=seeded())
    together = objective(batch, draw)
    for i in range(3):
        one = dataclasses.replace(draw, order=draw.order[i : i + 1], step=draw.step[i : i + 1])
        alone = objective(batch[i : i + 1], one).predictions
        torch.testing.assert_close(alone, together.predictions[i : i + 1], rtol=0, atol=1e-5)


def test_the_loss_falls_on_one_batch_and_the_query_does_not_decay() -> None:
    objective, batch = build(class_token=True, image_size=8), images(8, 8)
    draw = objective.draw(batch, generator=seeded())
    first, _ = gradients(objective, batch, draw)  # every parameter gets one
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        loss = objective(batch, draw).loss
        loss.backward()
        optimizer.step()
        if loss < 0.9 * first:
            break
    assert loss < 0.9 * first
    assert objective.no_weight_decay() == {"reader.query", "encoder.module.cls_token", "encoder.module.pos_embed"}


def test_the_query_starts_small() -> None:
    query = sb.QueryReader(2048).query
    assert query.shape == (1, 1, 2048)
    assert query.std().item() == pytest.approx(0.02, rel=0.1)


def test_bfloat16_on_cpu_is_close_to_single_precision(objective: sb.SegmentPrediction) -> None:
    batch = images(3, 8)
    draw = objective.draw(batch, generator=seeded())
    with torch.autocast("cpu", torch.bfloat16):
        half = objective(batch, draw)
    torch.testing.assert_close(half.loss, objective(batch, draw).loss, rtol=0.02, atol=0)


def test_what_cannot_be_predicted_is_refused() -> None:
    with pytest.raises(ValueError, match="predict_first=True needs an encoder with a prefix token"):
        build(predict_first=True)
    with pytest.raises(ValueError, match="SquarePartitioner makes one segment of the 4x4 grid: the first segment is"):
        build(sb.SquarePartitioner(sides=(4,)))(images(2, 8))
    base = build()
    with pytest.raises(ValueError, match="tokenizer has patch"):
        sb.SegmentPrediction(
            encoder=base.encoder,
            reader=sb.QueryReader(base.encoder.dim),
            tokenizer=sb.PatchTokenizer(image_size=8, patch_size=4),
            partitioner=SQUARES,
            target=base.target,
        )


def test_single_blobs_have_loss_0_and_gradients_0() -> None:
    objective = build(BLOBS)
    ids = torch.zeros(2, 16, dtype=torch.long)
    draw = sb.OrderedSerializer()(sb.Segments(levels=(ids,), counts=(1,)))
    loss, found = gradients(objective, images(2, 8), draw)
    assert loss == 0
    assert all(torch.count_nonzero(value) == 0 for value in found.values())
