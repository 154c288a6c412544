"""Dry runs: estimates beside hand calculations and real steps, and the text that tells them."""

import contextlib
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import ssl_blocks as sb
from ssl_blocks.cli import load_config, main
from ssl_blocks.data import ImageData, ImageShape, load
from ssl_blocks.engine import parameter_groups
from ssl_blocks.pretrain import RunConfig, describe, dryrun
from ssl_blocks.pretrain.dryrun import NUM_IMAGES, segments_text
from ssl_blocks.pretrain.estimate import (
    PRECISIONS,
    Count,
    activation_bytes,
    count_flops,
    count_parameters,
    kept_for_backward,
    state_bytes,
)
from ssl_blocks.recipes.randsac import RECIPE
from tests.recipes import build, images

SHAPE = ImageShape(3, 16, 16)
SQUARES, BLOBS = sb.SquarePartitioner(sides=(2,)), sb.BlobPartitioner(counts=(7, 3))


def test_flops_equal_a_hand_calculation() -> None:
    dim, depth, layers, pixels = 32, 4, 2, 3 * 2 * 2
    e = t = 60  # 64 tokens less a segment of 4
    linear = e * pixels * dim  # patch embedding
    linear += depth * e * 12 * dim**2  # qkv and projection: 4, MLP: 8
    linear += layers * (t * 12 * dim**2 + t * 2 * dim**2 + e * 2 * dim**2)  # queries and projection; keys and values
    linear += t * dim * pixels  # head
    attention = depth * 2 * e * e * dim + layers * 2 * (t * t + t * e) * dim
    forward = 2 * (linear + attention)
    flops = count_flops(build(SQUARES, dim=dim, depth=depth, decoder_depth=layers), SHAPE)
    assert flops.forward == pytest.approx(forward, rel=0.03)
    assert flops.backward == pytest.approx(2 * forward, rel=0.03)


def test_parameters_are_counted_by_part_and_once() -> None:
    objective = build(SQUARES, decoder_positions="shared", positions="learned", class_token=True)
    counts = count_parameters(objective)
    assert list(counts) == ["encoder", "router", "decoder", "head"]
    assert sum(count.total for count in counts.values()) == sum(p.numel() for p in objective.parameters())
    assert counts["router"] == Count(total=3 * 2 + 2, trainable=3 * 2 + 2)
    fixed = count_parameters(build(SQUARES))["encoder"]
    assert fixed.total - fixed.trainable == 64 * 16


def test_states_are_the_bytes_of_a_real_step() -> None:
    objective = build(SQUARES, positions="sincos")
    groups = parameter_groups(objective, weight_decay=0.05, no_weight_decay=objective.no_weight_decay())
    optimizer = torch.optim.AdamW(groups)
    objective(images()).loss.backward()
    optimizer.step()
    states = state_bytes(objective)
    assert states.parameters == sum(p.nbytes for p in objective.parameters())
    assert states.gradients == sum(p.grad.nbytes for p in objective.parameters() if p.grad is not None)
    assert states.optimizer == sum(v.nbytes for state in optimizer.state.values() for v in state.values())


@pytest.mark.parametrize(("partitioner", "precision"), [(SQUARES, "fp32"), (BLOBS, "bf16 on CPU")])
def test_activations_are_those_of_a_real_step(partitioner: sb.parts.SegmentPartitioner, precision: str) -> None:
    objective, batch = build(partitioner, dim=32, num_heads=4), images(6)
    casts = torch.autocast("cpu", dtype=torch.bfloat16) if precision != "fp32" else contextlib.nullcontext()
    draw = objective.draw(batch)
    with kept_for_backward(objective) as kept, casts:
        loss = objective(batch, draw).loss  # noqa: F841 - alive
    estimate = activation_bytes(objective, SHAPE, precision).of(6)  # type: ignore[arg-type]
    assert estimate == pytest.approx(sum(kept.values()), rel=0.01)
    assert all(p.device.type == "cpu" for p in objective.parameters())
    assert not {p.untyped_storage()._cdata for p in objective.parameters()} & set(kept)


class Changed(sb.Objective):
    """An objective, and something more that forward does."""

    def __init__(self, inner: sb.Objective, forward) -> None:
        super().__init__()
        self.inner, self.in_forward = inner, forward
        self.tokenizer, self.encoder = inner.tokenizer, inner.encoder

    def draw(self, images, *, generator=None):
        return self.inner.draw(images, generator=generator)

    def forward(self, images, draw=None):
        self.in_forward(images)
        return self.inner(images, draw)


def ask_for_the_device(images: torch.Tensor) -> None:
    with torch.autocast(images.device.type, enabled=False):
        pass


CHANGES = {
    "forward asks for the device": ask_for_the_device,
    "forward looks at values": lambda images: float(images.sum()),
}


def test_what_a_step_looks_at_makes_no_difference_to_what_it_costs() -> None:
    plain = build(SQUARES, depth=1, decoder_depth=1)
    flops, expected = count_flops(plain, SHAPE), activation_bytes(plain, SHAPE, "bf16")
    for name, change in CHANGES.items():
        assert count_flops(Changed(plain, change), SHAPE) == flops, name
    # for real, CPU's own kernel is in the place of the GPU's
    found = activation_bytes(Changed(plain, CHANGES["forward looks at values"]), SHAPE, "bf16")
    assert found.per_image == pytest.approx(expected.per_image, rel=0.1)


class Codes(torch.nn.Module):
    """A loss with a batch norm of images, and a codebook in a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.codes = torch.nn.BatchNorm1d(12), [torch.randn(12, 8)]

    def forward(self, predictions, targets, is_target):
        return (self.norm(predictions.mean(1)) @ self.codes[0]).square().mean()


def test_batch_norms_of_images_and_tensors_in_plain_places_are_counted_and_left_alone() -> None:
    objective = build(SQUARES, depth=1, decoder_depth=1)
    plain = count_flops(objective, SHAPE)
    objective.loss = Codes()
    assert count_flops(objective, SHAPE).forward == plain.forward + 2 * 12 * 8
    assert objective.loss.norm.num_batches_tracked == 0
    assert all(p.grad is None and p.device.type == "cpu" for p in objective.parameters())


class Attended:
    """Hides what the encoder, as its weights are, makes the most of."""

    def __init__(self, encoder) -> None:
        self.encoder = encoder

    def __call__(self, images, grid, *, generator=None):
        size = self.encoder.embed(images).norm(dim=-1)
        hidden = size.argsort(1).argsort(1) >= int(size.shape[1] * min(0.5, float(size.sum())))
        return sb.Segments(levels=(hidden.long(),), counts=(2,), step_sizes=(8, 8))


class Waves(RunConfig):
    """Brings data of its own."""

    def load_data(self) -> ImageData:
        return ImageData.stand_in(ImageShape(2, 16, 16))


def assemble_for_waves(config: Waves, data: ImageData) -> sb.SegmentPrediction:
    encoder = config.encoder.build(image_size=data.shape[1:], channels=data.shape.channels)
    tokenizer = sb.PatchTokenizer(image_size=16, patch_size=4, channels=2)
    objective = sb.simmim(encoder=encoder, tokenizer=tokenizer, partitioner=Attended(encoder))
    objective.brightest = int(data.train.images.amax())  # there are numbers to look at
    return objective


def test_data_of_ones_own_and_draws_from_weights_are_described(tmp_path: Path) -> None:
    encoder = {"patch_size": 4, "width": 16, "depth": 1, "heads": 2}
    settings = {"encoder": encoder, "optimizer": {"batch_size": 8, "warmup_epochs": 0}}
    config = Waves(name="waves", output_dir=tmp_path, **settings)
    text = words(describe(config, assemble_for_waves))
    assert "images: 2x16x16" in text
    assert "2 segments of one image" in text
    assert list(tmp_path.iterdir()) == []


def test_what_is_wrong_is_said_once_the_weights_are_there(tmp_path: Path) -> None:
    def misfit(config: Waves, data: ImageData) -> sb.SegmentPrediction:
        raise ValueError("no such part")

    with pytest.raises(ValueError, match="no such part"):
        describe(Waves(name="waves", output_dir=tmp_path), misfit)


def test_sixteen_bits_take_less_and_plain_attention_more() -> None:
    objective = build(SQUARES, depth=1, decoder_depth=1)
    full, fused, plain = (activation_bytes(objective, SHAPE, p).per_image for p in ("fp32", "bf16", "bf16 on CPU"))
    assert 0.5 * full < fused < plain < full


@pytest.mark.parametrize(
    ("partitioner", "number"), [(SQUARES, 16), (sb.SquarePartitioner(sides=(2, 4)), 16), (sb.TokenPartitioner(), 64)]
)
def test_segments_are_shown_in_reading_order(partitioner: sb.parts.SegmentPartitioner, number: int) -> None:
    objective = build(partitioner)
    text = segments_text(objective, SHAPE, seed=3)
    assert text == segments_text(objective, SHAPE, seed=3) != segments_text(objective, SHAPE, seed=4)
    lines = text.splitlines()
    assert lines[0].startswith(f"{number} segments")
    title = next(i for i, line in enumerate(lines) if "read as number" in line)
    order = " ".join(lines[1:title]).split()
    assert len(set(order)) == number
    cells = [line.split() for line in lines[title + 1 :]]
    assert [len(row) for row in cells] == [16] * 8
    for row in cells:
        for letter, step in zip(row[:8], row[8:], strict=True):
            assert order[int(step) - 1] == letter
    draw = objective.draw(torch.zeros(1, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    assert sorted(int(step) for row in cells for step in row[8:]) == sorted((draw.step[0] + 1).tolist())


def dry(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(RECIPE, argv=[*argv, "--dry-run"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


DIGITS = ("--preset=randsac_digits", "--encoder.depth=1", "--decoder.depth=1")


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_dry_run_tells_everything_and_what_it_assumed_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sizes = ("--trainer.devices", "8", "--optimizer.accumulate", "2", "--encoder.depth", "1", "--decoder.depth", "1")
    told = dry(capsys, "--preset", "randsac_imagenet1k", *sizes)
    assert list(tmp_path.iterdir()) == []
    assert max(map(len, told.splitlines())) <= 110
    text = words(told)
    for part in (
        "configuration (runs/randsac_imagenet1k is free)",
        "parameters total trainable",
        "FLOPs per image",
        "memory per process",
        "base_lr: 0.0002",
        "images: 3x192x192 NOTE: the data was not found",
        "assumed: data.image_size as configured and 3 channels",
        "256 images at a time: batch 4096, 8 processes, 2 parts",
        "peak learning rate 0.0032",
        "steps per epoch 312 steps 499,200 warm-up 12,480",
        "16 segments of one image",
    ):
        assert part in text


@pytest.mark.process
def test_shards_divide_what_belongs_to_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    shape, settings = ImageShape(1, 8, 8), (*DIGITS, "--trainer.devices=2")
    configs = [load_config(RECIPE, [*settings, f"--trainer.strategy={strategy}"]) for strategy in ("ddp", "fsdp")]
    objective, crop = RECIPE.assemble(configs[0], ImageData.stand_in(shape)), sb.data.RandomResizedCropFlip(8)
    found = [activation_bytes(objective, shape, precision) for precision in PRECISIONS]
    monkeypatch.setattr(dryrun, "activation_bytes", lambda _, __, precision, ___: found[PRECISIONS.index(precision)])
    whole, shards = (words(dryrun._memory(config, objective, shape, crop)) for config in configs)
    assert "parameters 0.45 MiB gradients 0.45 MiB AdamW 0.90 MiB" in whole
    assert "parameters 0.23 MiB gradients 0.22 MiB AdamW 0.45 MiB" in shards
    for text, states in ((whole, 1.80), (shards, 0.90)):
        _, kept, total = re.findall(r"([\d.]+) MiB", text[text.index("activations") :])[:3]
        assert float(total) == pytest.approx(states + float(kept), abs=0.03)


@pytest.mark.parametrize("name", ["digits", "crowds"])
def test_known_numbers_of_images_are_right(name: str) -> None:
    assert len(load(name).train) == NUM_IMAGES[name]


def test_flat_folder_is_counted_and_looked_at(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dryrun, "_looked_at", lambda *_: ["what it costs", "segments"])
    (tmp_path / "runs" / "randsac_digits").mkdir(parents=True)
    (tmp_path / "runs" / "randsac_digits" / "config.yaml").write_text("name: randsac_digits\n")
    (tmp_path / "images").mkdir()
    for i in range(9):
        Image.new("RGB", (16, 8), (i, i, i)).save(tmp_path / "images" / f"{i}.png")
    text = words(dry(capsys, *DIGITS, "--data.name", "imagefolder:images", "--optimizer.batch_size", "4"))
    assert "runs/randsac_digits holds something already" in text
    assert "images: 3x8x16" in text
    assert "training images 9 steps per epoch 2" in text
