"""Several objectives on one encoder: the sum of their losses, and the encoder once."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch

import ssl_blocks as sb
from ssl_blocks.encoders import export_encoder
from ssl_blocks.testing import LeakError, assert_no_leak
from tests.recipes import build, gradients, images


def parts(**options) -> dict[str, sb.Objective]:
    """RandSAC and MAE on one encoder."""
    randsac = build(sb.SquarePartitioner(sides=(2,)), **options)
    mae = sb.mae(
        encoder=randsac.encoder,
        tokenizer=randsac.tokenizer,
        target=randsac.target,
        decoder=sb.MaskTokenDecoder(grid=randsac.encoder.grid, dim=24, depth=1, num_heads=2, memory_dim=16),
    )
    return {"randsac": randsac, "mae": mae}


class Views(sb.Objective):
    """Pulls two views of an image together: stands for distillation."""

    takes_views = True

    def __init__(self, encoder: sb.encoders.FeatureEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.seen: list[str] = []

    def draw(self, images, *, generator=None):
        return None

    def forward(self, images, draw=None):
        one, other = (self.encoder.features(view) for view in images.images[:2])
        rows = (one - other).square().mean(-1)[:, None, None]
        zeros = torch.zeros(rows.shape[:2], dtype=torch.int64)
        return sb.ObjectiveOutput(
            loss=rows.mean(),
            predictions=rows,
            targets=torch.zeros_like(rows),
            index=zeros,
            step=zeros,
            is_target=torch.ones_like(zeros, dtype=torch.bool),
            draw=draw,
            metrics={"spread": one.detach().std()},
        )

    def before_step(self, progress):
        self.seen.append(f"before {progress.step}")

    def after_step(self):
        self.seen.append("after")


def test_the_loss_and_its_gradients_are_the_weighted_sum():
    both = sb.WeightedSum(parts(positions="learned"), weights={"randsac": 0.5, "mae": 2.0})
    batch = images(3)
    draw = both.draw(batch, generator=torch.Generator().manual_seed(0))
    loss, found = gradients(both, batch, draw)
    expected, total = {name: torch.zeros_like(p) for name, p in both.named_parameters()}, 0.0
    for name, weight in both.weights.items():
        both.zero_grad()
        out = both.parts[name](batch, draw[name])
        out.loss.backward()
        total += weight * out.loss.item()
        for key, parameter in both.named_parameters():
            if parameter.grad is not None:
                expected[key] += weight * parameter.grad
    assert loss.item() == pytest.approx(total, rel=1e-6)
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, expected[key], rtol=1e-4, atol=1e-6)
    shared = [key for key in found if key.startswith("encoder.")]
    assert shared
    assert not any(".encoder." in key for key in found)


def test_output_holds_each_loss_and_is_the_mean_over_rows():
    both = sb.WeightedSum(parts())
    batch = images(3)
    draw = both.draw(batch, generator=torch.Generator().manual_seed(0))
    out, alone = both(batch, draw), both.outputs(batch, draw)
    assert out.predictions.shape == (3, 2, 1)
    assert out.is_target.all()
    for row, (name, one) in enumerate(alone.items()):
        assert torch.equal(out.predictions[:, row, 0], one.loss.detach().expand(3))
        assert torch.equal(out.metrics[f"{name}_loss"], one.loss.detach())
    torch.testing.assert_close(out.loss, sum(one.loss for one in alone.values()))
    assert torch.equal(both(batch, out.draw).loss, out.loss)


def test_a_weight_of_zero_leaves_the_other_objective():
    both = sb.WeightedSum(parts(), weights={"randsac": 0.0, "mae": 1.0})
    batch = images(2)
    draw = both.draw(batch)
    assert torch.equal(both(batch, draw).loss, both.parts["mae"](batch, draw["mae"]).loss)


def test_a_sum_is_checked_for_leaks_part_by_part():
    both, batch = sb.WeightedSum(parts(image_size=8, depth=2)), images(2, 8)
    assert assert_no_leak(both, batch, draws=2).passed == ("randsac", "mae")

    def peek(module, args, out):
        seen = out.predictions + 0.1 * out.targets
        return dataclasses.replace(out, predictions=seen, loss=sb.predicted_mse(seen, out.targets, out.is_target))

    both.parts["mae"].register_forward_hook(peek)
    with pytest.raises(LeakError, match=r"^mae: by gradient"):
        assert_no_leak(both, batch, draws=2)


def test_the_encoder_is_saved_once_and_loads_strictly():
    both, other = sb.WeightedSum(parts(seed=1)), sb.WeightedSum(parts(seed=2))
    state = both.state_dict()
    pointers = [value.data_ptr() for value in state.values()]
    assert len(set(pointers)) == len(pointers)
    assert sum(key.endswith("blocks.0.attn.qkv.weight") and "decoder" not in key for key in state) == 1
    other.load_state_dict(state, strict=True)
    batch = images(2)
    draw = both.draw(batch)
    assert torch.equal(both(batch, draw).loss, other(batch, draw).loss)
    missing = {key: value for key, value in state.items() if key != "encoder.module.norm.weight"}
    with pytest.raises(RuntimeError, match=r"Missing key.*encoder\.module\.norm\.weight"):
        other.load_state_dict(missing, strict=True)


def test_it_is_saved_once_inside_another_module_and_after_a_copy_too():
    both = torch.nn.ModuleDict({"objective": copy.deepcopy(sb.WeightedSum(parts()))})
    state = both.state_dict()
    assert not [key for key in state if "objectives.mae.encoder" in key]
    both.load_state_dict(state, strict=True)


def test_views_go_to_those_who_take_them_and_the_first_one_to_the_others():
    both = parts()
    both["views"] = Views(both["mae"].encoder)
    objective = sb.WeightedSum(both)
    assert objective.takes_views
    views = sb.Views((images(2), images(2, seed=5)), num_global=2)
    draw = objective.draw(views, generator=torch.Generator().manual_seed(0))
    out = objective(views, draw)
    assert torch.equal(out.metrics["mae_loss"], both["mae"](views.images[0], draw["mae"]).loss)
    assert torch.equal(out.metrics["views_loss"], both["views"](views).loss)
    assert "views_spread" in out.metrics


def test_every_objective_lives_through_every_step():
    both = parts()
    both["views"] = Views(both["mae"].encoder)
    objective = sb.WeightedSum(both)
    for step in range(2):
        objective.before_step(sb.Progress(step=step, epoch=0, num_steps=2, steps_per_epoch=2))
        objective.after_step()
    assert both["views"].seen == ["before 0", "after", "before 1", "after"]


def test_positions_and_tokens_do_not_decay():
    objective = sb.WeightedSum(parts(positions="learned", class_token=True))
    spared = objective.no_weight_decay()
    assert {
        "encoder.module.pos_embed",
        "encoder.module.cls_token",
        "objectives.mae.reader.decoder.mask_token",
    } <= spared
    assert spared <= {name for name, _ in objective.named_parameters()}


def test_the_encoder_is_exported_as_it_is(tmp_path: Path):
    objective = sb.WeightedSum(parts())
    encoder = objective.export_encoder()
    assert encoder is objective.parts["randsac"].encoder
    folder = export_encoder(
        encoder, tmp_path / "encoder", tokenizer=objective.tokenizer, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    assert (folder / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"mae": 1.0}, r"weights=\{'mae': 1.0\} must name the objectives \['mae', 'randsac'\]"),
        ({"mae": -1.0, "randsac": 1.0}, "must be finite, none below 0"),
        ({"mae": 0.0, "randsac": 0.0}, "and one above"),
        ({"mae": float("nan"), "randsac": 1.0}, "nan must be a finite number"),
    ],
)
def test_wrong_weights_are_named(weights, message):
    with pytest.raises(ValueError, match=message):
        sb.WeightedSum(parts(), weights=weights)


def test_objectives_with_encoders_of_their_own_are_refused():
    with pytest.raises(ValueError, match="objectives must share one model, but 'mae' holds another than 'randsac'"):
        sb.WeightedSum({"randsac": parts()["randsac"], "mae": parts()["mae"]})


def test_no_objective_and_unfit_names_are_refused():
    with pytest.raises(ValueError, match=r"objectives=\{\} must hold at least one"):
        sb.WeightedSum({})
    with pytest.raises(ValueError, match="the name 'a b' must be an identifier"):
        sb.WeightedSum({"a b": parts()["mae"]})


# --- what is exported, and what is shared -----------------------------------------------------------------------------


class Student(torch.nn.Module):
    """One pass over masked tokens, which both objectives below read."""

    def __init__(self, encoder, tokenizer):
        super().__init__()
        self.encoder, self.tokenizer, self.passes = encoder, tokenizer, 0

    def draw(self, images, *, generator=None):
        return torch.rand(len(images), self.encoder.grid.num_tokens, generator=generator) < 0.5

    def forward(self, images, draw):
        self.passes += 1
        tokens = self.encoder.embed(self.tokenizer(images)).masked_fill(draw[..., None], 0.0)
        index = torch.arange(tokens.shape[1]).expand(len(images), -1)
        return self.encoder.encode(tokens, index).final, draw


class Follows(sb.Objective):
    """Compares the shared pass with a moving average: of every masked token, or of their mean."""

    reads_shared = True

    def __init__(self, encoder, tokenizer, *, whole):
        super().__init__()
        self.encoder, self.whole = encoder, whole
        self.teacher = sb.EncoderTarget(sb.MovingAverage(encoder, momentum=0.5))

    def draw(self, images, *, generator=None):
        return None

    def forward(self, images, draw=None, *, shared):
        (states, masked), wanted = shared, self.teacher(images)
        if self.whole:
            states, wanted, masked = (states.mean(1, True), wanted.mean(1, True), masked[:, :1] | True)
        step = torch.zeros_like(masked, dtype=torch.int64)
        loss = sb.predicted_cosine(states, wanted, masked)
        return sb.ObjectiveOutput(loss, states, wanted, step, step, masked, draw)

    def export_encoder(self):
        return self.teacher.encoder.copy


def dinov2():
    base = build(sb.SquarePartitioner(sides=(2,)))
    pair = {name: Follows(base.encoder, base.tokenizer, whole=name == "dino") for name in ("dino", "ibot")}
    return base, pair, Student(base.encoder, base.tokenizer)


def test_objectives_read_one_pass_of_the_student():
    base, pair, student = dinov2()
    both = sb.WeightedSum(pair | {"randsac": base}, exports="ibot", shared=student)
    batch = images(3)
    draw = both.draw(batch, generator=torch.Generator().manual_seed(0))
    loss, found = gradients(both, batch, draw)
    assert student.passes == 1
    both.zero_grad()
    alone = [part(batch, None, shared=student(batch, draw["shared"])).loss for part in pair.values()]
    torch.testing.assert_close(sum(alone) + base(batch, draw["randsac"]).loss, loss)
    total = sum(alone) + base(batch, draw["randsac"]).loss
    total.backward()
    for name, parameter in both.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, found[name], rtol=1e-4, atol=1e-6)
    state = both.state_dict()
    assert not any(name.startswith("shared.encoder.") for name in state)  # saved once, under its first name
    both.load_state_dict(state)


def test_a_shared_pass_goes_with_those_who_read_it():
    _, pair, student = dinov2()
    with pytest.raises(ValueError, match=r"shared=None must be given for objectives that read it.*\['dino', 'ibot'\]"):
        sb.WeightedSum(pair)
    with pytest.raises(ValueError, match=r"must be given for objectives that read it, and these do: \[\]"):
        sb.WeightedSum(parts(), shared=student)


def test_what_a_named_objective_exports_is_left_behind():
    base, pair, student = dinov2()
    first = sb.WeightedSum({"randsac": base} | pair, shared=student)
    assert first.export_encoder() is base.encoder
    assert first.tokenizer is base.tokenizer
    teacher = sb.WeightedSum({"randsac": base} | pair, shared=student, exports="dino")
    assert teacher.export_encoder() is pair["dino"].teacher.encoder.copy
    assert teacher.tokenizer is None  # DINO's: it cuts nothing
    with pytest.raises(ValueError, match=r"exports='mae' must be one of the objectives"):
        sb.WeightedSum({"randsac": base}, exports="mae")
