"""Two processes do what one does with the whole batch."""

import csv
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ssl_blocks.cli import main
from ssl_blocks.engine.parallel import count_processes, repeated_blocks
from ssl_blocks.engine.rank import is_rank_zero
from ssl_blocks.evaluation import load_classifier
from ssl_blocks.recipes.randsac import RECIPE
from tests.pretrain.small import arguments, config, final
from tests.pretrain.two_processes import BLOBS, CASES, finetune, train
from tests.recipes import build


@pytest.fixture(scope="module")
def trained(divided: Path) -> Path:
    """All cases, trained by two processes."""
    return divided / "training"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """The same, trained by one process."""
    folder = tmp_path_factory.mktemp("alone")
    return train(folder, "run", *BLOBS), folder / "run"


@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_losses_gradients_and_weights_of_one(
    case: str, trained: Path, alone: tuple[dict, Path]
) -> None:
    one, whole = alone
    two = [torch.load(trained / f"{case}-{rank}.pt") for rank in range(2)]
    counts = [torch.tensor(outcome["counts"]) for outcome in two]
    assert (counts[0] != counts[1]).any()  # a mean of means would be another loss
    for outcome in two:
        assert outcome["losses"] == pytest.approx(one["losses"], rel=1e-4)
        assert outcome["gradients"].keys() == one["gradients"].keys()
        for name, gradient in one["gradients"].items():
            torch.testing.assert_close(outcome["gradients"][name], gradient, rtol=1e-4, atol=1e-6)
    # each process, step and part draws for itself: generators and torch's own
    seeds = [seed for outcome in two for seed in outcome["seeds"]]
    assert len({seed for _, seed, _ in seeds}) == len({draw for _, _, draw in seeds}) == len(seeds) > 8
    assert {part % 2 for part, _, _ in two[1]["seeds"]} == {1}
    weights = [final(folder)["state_dict"] for folder in (whole, trained / case)]
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        if "qkv.bias" not in name:  # gradients of keys' biases are rounding errors, of which AdamW makes full steps
            torch.testing.assert_close(weights[1][name], weight, rtol=1e-3, atol=1e-4)
    results = json.loads((trained / case / "results.json").read_text())
    assert [score["name"] for score in results["scores"]] == ["raw pixels", "random encoder", "pretrained encoder"]
    looks = [row for row in csv.DictReader((trained / case / "metrics.csv").read_text().splitlines()) if row["rankme"]]
    assert [row["epoch"] for row in looks] == ["1.0", "2.0"]
    # where weights are dealt out, there are numbers alone
    assert (trained / case / "figures").exists() == ("sharded" not in case)
    assert (trained / case / "encoder" / "model.safetensors").is_file()


def test_two_processes_fine_tune_as_one_with_two_parts(trained: Path, tmp_path: Path) -> None:
    losses = [torch.load(trained / f"finetuned-{rank}.pt") for rank in range(2)]
    assert losses[0] == losses[1]
    assert losses[0] == pytest.approx(finetune(tmp_path, accumulate=2), rel=1e-4)
    one, two = (final(folder / "finetuned")["state_dict"] for folder in (tmp_path, trained))
    for name, weight in one.items():
        if "qkv.bias" not in name:
            torch.testing.assert_close(two[name], weight, rtol=1e-3, atol=1e-4)
    assert load_classifier(trained / "finetuned").model.num_classes == 2


class Forked(multiprocessing.get_context("fork").Process):
    """What a command begins, without the seconds that it takes to import what is imported here."""

    def __init__(self, command: list[str], env: dict[str, str], cwd: None = None) -> None:
        super().__init__(target=begin, args=(command, env))
        self.start()

    def poll(self) -> int | None:
        return self.exitcode


def begin(command: list[str], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    sys.argv = ["randsac.py", *command[command.index("--preset=randsac_digits") :]]
    subprocess.Popen = Forked
    sys.exit(main(RECIPE))


def test_lightning_starts_the_processes_itself_where_torchrun_has_not(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = arguments(tmp_path, "--trainer.devices=2", "--trainer.epochs=1")
    first = Forked(options, {})
    first.join(timeout=100)
    first.kill()
    assert first.exitcode == 0
    printed = capfd.readouterr()
    assert printed.out.count("pretrained 1 epochs") == 1  # one process speaks
    assert printed.err == ""
    end = final(tmp_path / "run")
    assert (end["global_step"], end["ssl_blocks"]["bits"]["processes"]) == (4, 2)


def sections(config):
    return config.trainer, config.optimizer


def test_processes_are_counted_from_options_or_from_torchrun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert count_processes(*sections(config(tmp_path))).world_size == 1
    found = count_processes(*sections(config(tmp_path, "--trainer.devices=2", "--trainer.num_nodes=4")))
    assert (found.devices, found.num_nodes, found.world_size) == (2, 4, 8)
    started = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8", "RANK": "5", "GROUP_RANK": "1"}
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    found = count_processes(*sections(config(tmp_path)))
    assert (found.devices, found.num_nodes, found.world_size) == (4, 2, 8)
    assert not is_rank_zero()
    with pytest.raises(ValueError, match=r"trainer.devices=2 must be left out, or be torchrun's 4"):
        count_processes(*sections(config(tmp_path, "--trainer.devices=2")))


def test_a_batch_that_cannot_be_dealt_out_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"optimizer.batch_size=32 must be a multiple of .* = 3 x 2"):
        count_processes(*sections(config(tmp_path, "--trainer.devices=3", "--optimizer.accumulate=2")))
    with pytest.raises(ValueError, match=r"trainer.strategy='fsdp' needs at least two processes"):
        count_processes(*sections(config(tmp_path, "--trainer.strategy=fsdp")))


def test_blocks_of_encoder_and_decoder_are_found_and_nothing_else() -> None:
    from ssl_blocks import SquarePartitioner

    objective = build(SquarePartitioner(sides=(2,)), depth=3, decoder_depth=2)
    blocks = repeated_blocks(objective)
    assert len(blocks) == 5
    assert {id(block) for block in blocks} == {
        id(block) for block in [*objective.encoder.module.blocks, *objective.reader.decoder.layers]
    }
    assert repeated_blocks(nn.Sequential(nn.Linear(2, 2), nn.ReLU())) == []


def test_a_rank_that_was_left_over_silences_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert is_rank_zero()
    monkeypatch.setenv("NODE_RANK", "0")  # as Lightning tells those that it has started
    assert not is_rank_zero()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert is_rank_zero()
    with pytest.raises(ValueError, match=r"trainer.devices x trainer.num_nodes = 1 must be the 2 tasks that srun"):
        count_processes(*sections(config(tmp_path)))
    assert count_processes(*sections(config(tmp_path, "--trainer.devices=2"))).world_size == 2
