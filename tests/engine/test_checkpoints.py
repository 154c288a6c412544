"""A checkpoint is what was written, to the bit, or it is refused and another one offered."""

import random
from pathlib import Path

import pytest
import torch

from ssl_blocks.engine.checkpoints import (
    FORMAT_VERSION,
    MARK,
    check_checkpoint,
    checkpoint_path,
    read_checkpoint,
    verify_checkpoint,
    write_checkpoint,
)


def content(step: int) -> dict:
    weights = {f"layer.{number}": torch.randn(40) for number in range(20)}
    mark = {"format_version": FORMAT_VERSION, "step": step, "seconds": 1.0, "losses": [], "facts": {}}
    return {MARK: mark, "state_dict": weights, "optimizer_states": [{"state": {}}], "loops": {"fit_loop": {}}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (1, 2, 3):
        path = checkpoint_path(tmp_path, step)
        path.parent.mkdir(exist_ok=True)
        write_checkpoint(content(step), path)
    return tmp_path


def test_what_is_written_is_read(run: Path) -> None:
    for step in (1, 2, 3):
        assert check_checkpoint(checkpoint_path(run, step))[MARK]["step"] == step


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_every_flipped_bit_is_found(run: Path) -> None:
    path, draw = checkpoint_path(run, 3), random.Random(0)
    whole = path.read_bytes()
    bits = 8 * len(whole)
    ends = [*range(8), *range(bits - 8 * 70, bits, 11)]  # head, and where the checksum is
    silent = 0
    for bit in [*draw.sample(range(bits), 100), *ends]:
        path.write_bytes(whole)
        flip(path, bit)
        with pytest.raises(ValueError, match="damaged or no checkpoint"):
            verify_checkpoint(path)
        try:
            read_checkpoint(path)
            silent += 1
        except ValueError:
            pass
    assert silent > 100  # reading alone does not find them


def test_the_newest_whole_one_is_offered(run: Path) -> None:
    newest, middle, oldest = (checkpoint_path(run, step) for step in (3, 2, 1))
    for path in (newest, middle):
        flip(path, 4 * path.stat().st_size)
    with pytest.raises(ValueError, match=f"not those that were written.*the previous good one is {oldest}"):
        check_checkpoint(newest)


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b"", lambda b: b[:30]])
def test_other_lengths_are_refused(run: Path, change) -> None:
    path = checkpoint_path(run, 3)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match="damaged or no checkpoint"):
        verify_checkpoint(path)


def test_a_file_of_others_is_refused(tmp_path: Path) -> None:
    torch.save(content(1), tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="no checksum is at its end"):
        verify_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="could not be read"):
        verify_checkpoint(tmp_path / "nowhere.ckpt")


@pytest.mark.parametrize("part", ["optimizer_states", "loops", "state_dict"])
def test_a_checkpoint_without_a_part_is_refused_and_the_part_named(run: Path, part: str) -> None:
    newest = checkpoint_path(run, 3)
    for lacking in ({}, {part: []}):
        whole = content(3)
        del whole[part]
        write_checkpoint(whole | lacking, newest)
        with pytest.raises(ValueError, match=f"cannot be gone on from: {part} is not in it; the previous good one is"):
            check_checkpoint(newest)
