"""Files of weights are read, and files of anything else are refused with the reason."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ssl_blocks.encoders.weights import read_state

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


def same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == WEIGHTS.keys() and all(torch.equal(found[name], WEIGHTS[name]) for name in WEIGHTS)


@pytest.mark.parametrize(
    "content",
    [
        WEIGHTS,
        {"model": WEIGHTS, "epoch": 3},
        {"state_dict": {f"module.{name}": value for name, value in WEIGHTS.items()}},
        {"model": {"module": WEIGHTS}},
        {"model": WEIGHTS, "args": Namespace(lr=1e-3, output_dir=""), "optimizer": {"state": {}}},
        {"model": {f"_orig_mod.{name}": value for name, value in WEIGHTS.items()}},
        {"model": {f"module._orig_mod.{name}": value for name, value in WEIGHTS.items()}},
        {"model": {f"_orig_mod.module.{name}": value for name, value in WEIGHTS.items()}},
    ],
    ids=["bare", "model", "distributed", "twice", "options", "compiled", "compiled inside", "compiled outside"],
)
def test_weights_are_found_wherever_scripts_put_them(tmp_path: Path, content) -> None:
    torch.save(content, tmp_path / "weights.pth")
    assert same(read_state(tmp_path / "weights.pth"))
    assert same(read_state(content))


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "weights.safetensors")
    assert same(read_state(str(tmp_path / "weights.safetensors")))


class Evil:
    """Would run code when unpickled in the plain way."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return Path.touch, (self.witness,)


def test_a_file_that_would_run_code_is_refused_and_does_not(tmp_path: Path) -> None:
    torch.save({"model": WEIGHTS, "args": Evil(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"evil\.pth is refused: it holds more than weights, and loading it could run"):
        read_state(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_a_whole_model_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"is refused: .*save its state_dict anew"):
        read_state(tmp_path / "model.pth")


def test_options_may_not_hide_what_would_run(tmp_path: Path) -> None:
    torch.save({"model": WEIGHTS, "args": Namespace(evil=Evil(tmp_path / "ran"))}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"evil\.pth is refused"):
        read_state(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["damaged.pth", "damaged.safetensors"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x02no weights")
    with pytest.raises(ValueError, match=rf"{name} is"):
        read_state(tmp_path / name)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(WEIGHTS, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="is no readable file of weights"):
        read_state(path)


def test_no_file_and_no_tensors_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.pth must be a file of weights"):
        read_state(tmp_path / "nothing.pth")
    with pytest.raises(ValueError, match=r"the mapping must hold tensors by name, got \['epoch'\]"):
        read_state({"epoch": 3})
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="must hold tensors by name, got list"):
        read_state(tmp_path / "list.pth")
