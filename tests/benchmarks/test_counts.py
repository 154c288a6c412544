"""The benchmarks that need no accelerator count right, and their commands run."""

import sys
from functools import partial
from types import ModuleType

import pytest
import torch

import ssl_blocks as sb
from examples.benchmarks import attention, counts, masked, measure, regions, scaling, speed, ways
from examples.benchmarks.counting import Operations, peak_bytes
from examples.benchmarks.models import MAESize, RandSACSize, randsac


def test_views_are_no_operations_and_bytes_are_those_read_and_written() -> None:
    x = torch.rand(10, 4)
    with Operations() as counted:
        y = x.T[:2].reshape(2, 10)  # a view
        y = y * 2
        y.add_(1)
    assert counted.names == {"mul": 1, "add_": 1}
    assert counted.bytes == (20 + 20 + 20 + 20) * 4


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_peak_is_what_is_held_at_once_and_what_was_there_before_is_no_part_of_it(device: str) -> None:
    x = torch.ones(100, device=device)

    def one_after_the_other() -> None:
        for _ in range(3):
            y = x * 2
            del y
        x.mul_(2)

    assert peak_bytes(one_after_the_other) == 400
    assert peak_bytes(lambda: [x * 2 for _ in range(3)]) == 1200


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_region_loss_takes_a_quarter_of_the_memory_of_loops(dtype: torch.dtype) -> None:
    mib = {name: regions.extra_mib(32, 65_536, way, dtype=dtype) for name, way in regions.WAYS.items()}
    assert mib["beside"] <= mib["loops"] / 4
    assert mib["ours"] <= mib["loops"] / 40
    assert mib["ours"] > 10  # positive control: chunks are seen


def test_masks_are_converted_once_and_not_in_every_layer() -> None:
    found = []
    for depth in (1, 2):
        objective = randsac(RandSACSize(dim=24, depth=depth, decoder_depth=depth))
        images = torch.rand(2, 3, 32, 32)
        with Operations() as counted:
            objective(images)
        found.append(counted.names)
    few, more = found
    assert more["addmm"] > few["addmm"]  # positive control
    for name in ("where", "scalar_tensor", "zeros_like", "masked_fill_", "bitwise_not"):
        assert more[name] == few[name], name


def test_counts_of_a_preset_are_those_of_its_objective() -> None:
    objective, shape, augmentation = counts.load("randsac_digits")
    assert isinstance(objective, sb.SegmentPrediction)
    single, half = (counts.count(objective, shape, augmentation, dtype) for dtype in ("fp32", "bf16"))
    layers = objective.modules()
    products = [
        part for part in layers if isinstance(part, torch.nn.Linear) and part is not objective.reader.router.mix
    ]
    assert single.forward["addmm"] + single.forward["mm"] == len(products) + 1  # and the stem
    assert single.forward["bmm"] == 1  # the router: a product for each image, at once
    assert shape == (1, 8, 8)
    assert half.both["_to_copy"] > single.both["_to_copy"]
    assert 0 < half.kept.per_image < single.kept.per_image < single.moved.per_image
    with pytest.raises(ValueError, match=r"preset='randsac' must be one of randsac_cifar10, "):
        counts.load("randsac")


@pytest.mark.parametrize(
    ("module", "arguments", "expected"),
    [
        (counts, "--presets randsac_digits --dtypes bf16 --names 3", "| randsac_digits | bf16 |"),
        (scaling, "--tiny --rounds 1 --tokens 64 --batches 2 --depths 2 --blobs 7", "| 7 blobs |"),
        (regions, "--rounds 1 --batch 1 --classes 64 --counted-batch 2", "extra memory, bf16, batch 2: ours"),
        (speed, "--rounds 1 --batch 2 --dtypes fp32", "ours at"),
        (
            ways,
            "apl_cifar_small --batch 2 --steps 4 --ways eager --device cpu --precision fp32",
            '"way": "eager", "ms"',
        ),
        (masked, "--rounds 1 --batch 2 --dtypes fp32", "ours at"),
        (attention, "--rounds 1 --dtypes fp32", "of the matmul rate"),
    ],
)
def test_commands_run(
    module: ModuleType,
    arguments: str,
    expected: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", [module.__name__, *arguments.split()])
    for name, size in (("RandSACSize", RandSACSize), ("MAESize", MAESize)):
        if module in (speed, masked) and hasattr(module, name):
            monkeypatch.setattr(module, name, partial(size, **scaling.TINY))
    monkeypatch.setattr(attention, "SHAPES", ((2, 3, 16),))
    module.main()
    assert expected in capsys.readouterr().out


def test_tokens_that_are_no_square_are_refused() -> None:
    with pytest.raises(ValueError, match="tokens=65 must be the square of a multiple of 4"):
        list(scaling.subjects(RandSACSize(), [65], [], [], []))


def test_what_a_processor_does_not_compute_is_said_and_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(measure, "_cpu_flags", lambda: {"avx2"})
    assert measure.measurable(None, cpu) == ["fp32"]
    assert "bf16: not measured" in capsys.readouterr().out
    assert measure.measurable(["bf16"], cpu) == ["bf16"]
    monkeypatch.setattr(measure, "_cpu_flags", lambda: {"avx2", "avx512_bf16"})
    assert measure.measurable(None, cpu) == ["fp32", "bf16"]
    assert not capsys.readouterr().out
