"""Interrupted runs end as uninterrupted ones do, and what cannot be gone on with is refused by name."""

import csv
import json
import math
import os
import pickle
import re
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image

from ssl_blocks.engine.checkpoints import check_checkpoint, list_checkpoints, read_checkpoint, write_checkpoint
from ssl_blocks.engine.errors import RunStopped
from ssl_blocks.engine.watch import Verdict
from ssl_blocks.pretrain.resume import stored_config
from ssl_blocks.recipes.randsac import assemble
from tests.pretrain.small import NUM_STEPS, acting, differences, final, prepare

pytestmark = pytest.mark.process  # takes long

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    return prepare(tmp_path_factory.mktemp("whole")).fit()


def stop(number: int):
    return lambda _: os.kill(os.getpid(), number)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was stopped after step 5."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(RunStopped):
        prepare(folder, build=acting(stop(signal.SIGTERM), 5)).fit()
    return folder / "run"


@pytest.fixture
def interrupted(stopped: Path, tmp_path: Path) -> Path:
    """A copy of that run, to be damaged and gone on with."""
    return Path(shutil.copytree(stopped, tmp_path / "run"))


@pytest.mark.parametrize("at_step", [1, NUM_STEPS - 1])  # the first, the last but one
def test_sigterm_saves_that_very_step_and_the_rest_is_the_same(at_step: int, whole: Path, tmp_path: Path) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(RunStopped, match=rf"SIGTERM after step {at_step}, saved as .*ckpt; go on with --resume") as end:
        prepare(tmp_path, build=acting(stop(signal.SIGTERM), at_step)).fit()
    assert end.value.exit_code == 143
    assert final(tmp_path / "run")["global_step"] == at_step
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    prepare(tmp_path, resume=True).fit()
    assert differences(final(whole), final(tmp_path / "run")) == []
    assert (tmp_path / "run" / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    assert (tmp_path / "run" / "encoder" / "model.safetensors").read_bytes() == (
        whole / "encoder" / "model.safetensors"
    ).read_bytes()


def test_ctrl_c_stops_in_order_too(tmp_path: Path) -> None:
    with pytest.raises(RunStopped, match="SIGINT after step 3") as end:
        prepare(tmp_path, build=acting(stop(signal.SIGINT), 3)).fit()
    assert end.value.exit_code == 130


def test_accumulated_runs_go_on_at_whole_steps(tmp_path: Path) -> None:
    ends, options = [], ("--optimizer.accumulate=2", "--trainer.epochs=2", "--data.max_train=64")
    for name, more in (("whole", {}), ("parts", {"build": acting(stop(signal.SIGTERM), 3)})):
        folder = tmp_path / name
        run = prepare(folder, *options, **more)
        if more:
            with pytest.raises(RunStopped, match="step 3"):
                run.fit()
            run = prepare(folder, *options, resume=True)
        ends.append(final(run.fit()))
    assert differences(*ends) == []


def test_only_the_newest_checkpoints_stay(whole: Path) -> None:
    assert [path.name for path in list_checkpoints(whole)] == ["step-00000012.ckpt", "step-00000010.ckpt"]


def test_a_finished_run_is_left_alone(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    prepare(whole.parent, resume=True).fit()
    assert "is complete" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in whole.rglob("*")}


def test_a_run_killed_between_training_and_results_still_gets_them(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    shutil.rmtree(tmp_path / "run" / "encoder")
    prepare(tmp_path, "--trainer.score=true", resume=True).fit()
    scores = json.loads((tmp_path / "run" / "results.json").read_text())["scores"]
    assert [score.pop("name") for score in scores] == ["raw pixels", "random encoder", "pretrained encoder"]
    assert scores[1] != scores[2]  # the random one is not what the checkpoint holds
    assert (tmp_path / "run" / "encoder" / "model.safetensors").read_bytes() == (
        whole / "encoder" / "model.safetensors"
    ).read_bytes()


def test_bare_resume_begins_a_run_that_is_not_there_yet(tmp_path: Path) -> None:
    assert prepare(tmp_path, resume=True).checkpoint is None


def test_a_path_names_run_or_checkpoint(whole: Path) -> None:
    newest, older = list_checkpoints(whole)
    assert prepare(whole.parent, resume=whole).checkpoint == newest
    assert prepare(whole.parent, resume=older).loop.resumed_step == 10
    assert stored_config(older)["name"] == "run"


DAMAGE = [
    (lambda path: path.write_bytes(b""), "is damaged or no checkpoint"),
    (lambda path: path.write_text("weights"), "is damaged or no checkpoint"),
    (lambda path: write_checkpoint({"state_dict": {}}, path), "is not a checkpoint of an ssl_blocks run"),
    (lambda path: write_checkpoint({"ssl_blocks": {"format_version": 99}}, path), "has checkpoint format 99;"),
]


def test_a_damaged_or_foreign_checkpoint_is_named_and_the_one_before_offered(interrupted: Path) -> None:
    newest, older = list_checkpoints(interrupted)
    newest.write_bytes(newest.read_bytes()[:-1000])
    offer = f"the previous good one is {older}: give it with --resume"
    with pytest.raises(ValueError, match=f"{newest} is damaged or no checkpoint .*{re.escape(offer)}"):
        prepare(interrupted.parent, resume=True)
    for damage, message in DAMAGE:
        damage(newest)
        with pytest.raises(ValueError, match=f"{newest} {message}.*{re.escape(offer)}"):
            check_checkpoint(newest)
    assert prepare(interrupted.parent, resume=older).loop.resumed_step == 4


def test_the_one_before_leads_to_the_same_end(interrupted: Path, whole: Path) -> None:
    newest, older = list_checkpoints(interrupted)
    newest.write_bytes(b"")
    prepare(interrupted.parent, resume=older).fit()
    assert differences(final(whole), final(interrupted)) == []


def test_where_no_checkpoint_is_good_none_is_offered(interrupted: Path) -> None:
    for path in list_checkpoints(interrupted):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="there is no other good one"):
        prepare(interrupted.parent, resume=True)


class Malicious:
    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_nothing_is_run_out_of_a_checkpoint(tmp_path: Path) -> None:
    trap, path = Malicious(), tmp_path / "step-00000001.ckpt"
    trap.path = tmp_path / "executed"
    torch.save({"ssl_blocks": {"format_version": 2}, "state_dict": {}, "trap": trap}, path)
    with pytest.raises(ValueError, match="is damaged or no checkpoint"):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps(trap))
    with pytest.raises(ValueError, match="is damaged or no checkpoint"):
        check_checkpoint(path)
    assert not trap.path.exists()


def test_another_configuration_is_refused_field_by_field(whole: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"optimizer.base_lr=0.5 \(the run has 0.008\), trainer.epochs=2 .* differ: .*trainer.epochs may be "
        r"raised, and trainer.\*, data.corrupt, .* may be others",
    ):
        prepare(whole.parent, "--optimizer.base_lr=0.5", "--trainer.epochs=2", resume=True)
    prepare(whole.parent, "--data.workers=0", "--trainer.checkpoint_every=3", resume=True)  # where and how, not what


def test_a_run_may_go_on_for_longer_by_the_rates_of_a_longer_run(tmp_path: Path) -> None:
    """Steps that are done stay; those to come learn as in a run that was meant to be as long."""
    short = prepare(tmp_path, "--trainer.epochs=2").fit()
    before = final(short)["state_dict"]
    assert stored_config(short)["trainer"]["epochs"] == 2
    longer = prepare(tmp_path, "--trainer.epochs=3", resume=True)
    assert (longer.loop.resumed_step, longer.loop.steps_left) == (8, 4)
    start = list_checkpoints(short)[0]
    assert all(torch.equal(value, before[name]) for name, value in read_checkpoint(start)["state_dict"].items())
    longer.fit()
    assert stored_config(short)["trainer"]["epochs"] == 3
    with (short / "metrics.csv").open() as file:
        rates = [(float(row["epoch"]), float(row["lr"])) for row in csv.DictReader(file) if row["lr"]]
    assert rates[-1][0] == 3
    peak = longer.module.plan.lr
    for epoch, rate in rates:  # 4 steps an epoch, one epoch of warm-up
        step, length = round(4 * epoch) - 1, 8 if epoch <= 2 else 12
        expected = step / 4 if step < 4 else 0.5 * (1 + math.cos(math.pi * (step - 4) / (length - 4)))
        assert rate == pytest.approx(peak * expected), epoch
    assert {length > 2 for length, _ in rates} == {True, False}
    prepare(tmp_path, "--trainer.epochs=3", resume=True)
    with pytest.raises(ValueError, match=r"trainer.epochs=2 \(the run has 3\) differs"):
        prepare(tmp_path, "--trainer.epochs=2", resume=True)


def test_images_may_lie_elsewhere_but_must_be_the_same(tmp_path: Path) -> None:
    def photos(name: str, first: int = 0) -> str:
        (tmp_path / name).mkdir()
        for i in range(40):
            Image.new("L", (8, 8), first + 3 * i).save(tmp_path / name / f"{i:02d}.png")
        return f"--data.name=imagefolder:{tmp_path / name}"

    options = ("--data.channels=1", "--optimizer.batch_size=20", "--trainer.epochs=3")
    with pytest.raises(RunStopped):
        prepare(tmp_path, photos("here"), *options, build=acting(stop(signal.SIGTERM), 2)).fit()
    with pytest.raises(ValueError, match=r"gone on with as it began, but now their mean=\[.*\] \(the run has \["):
        prepare(tmp_path, photos("brighter", first=60), *options, resume=True)
    assert prepare(tmp_path, photos("there"), *options, resume=True).loop.resumed_step == 2
    (tmp_path / "there" / "05.png").rename(tmp_path / "there" / "39b.png")  # another order
    with pytest.raises(ValueError, match=r"now their fingerprint='\w{16}' \(the run has '\w{16}'\)$"):
        prepare(tmp_path, f"--data.name=imagefolder:{tmp_path / 'there'}", *options, resume=True)
    (tmp_path / "there" / "39b.png").rename(tmp_path / "there" / "05.png")
    (tmp_path / "there" / "39.png").unlink()
    with pytest.raises(ValueError, match=r"now training images=39 \(the run has 40\)"):
        prepare(tmp_path, f"--data.name=imagefolder:{tmp_path / 'there'}", *options, resume=True)


def test_weights_of_another_shape_are_refused(whole: Path) -> None:
    def wider(config, data):
        encoder = config.encoder.model_copy(update={"width": 32})
        return assemble(config.model_copy(update={"encoder": encoder}), data)

    with pytest.raises(ValueError, match=r"does not fit the configuration: .* has shape"):
        prepare(whole.parent, resume=True, build=wider)


def test_a_folder_that_holds_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds no run"):
        prepare(tmp_path, resume=True)
    with pytest.raises(FileExistsError, match="already holds a run"):
        prepare(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nowhere.* must be the folder of a run"):
        prepare(tmp_path, resume=tmp_path / "nowhere")


def spoil(objective) -> None:
    with torch.no_grad():
        objective.head.bias.fill_(torch.nan)


def test_a_loss_that_is_no_number_stops_the_run_and_spoils_nothing(tmp_path: Path) -> None:
    with pytest.raises(RunStopped, match=r"not a finite number in step 5 .*last good checkpoint is .*00000004.ckpt"):
        prepare(tmp_path, build=acting(spoil, 5)).fit()
    kept = final(tmp_path / "run")
    assert kept["global_step"] == 4
    assert all(value.isfinite().all() for value in kept["state_dict"].values())
    assert not (tmp_path / "run" / "encoder").exists()


def test_weights_of_a_bad_loss_are_not_saved_even_where_losses_are_looked_at_only_now_and_then(tmp_path: Path) -> None:
    loop = prepare(tmp_path).loop
    loop.watch.every = 20
    loop.watch.see(Verdict(torch.tensor([torch.nan]), ()), 7)  # as on a GPU between two looks
    with pytest.raises(RunStopped, match="in step 7 "):
        loop.on_save_checkpoint({})


def test_a_bad_loss_before_the_first_checkpoint_is_told_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(RunStopped, match=r"in step 1 .*there is no checkpoint yet"):
        prepare(tmp_path, build=acting(spoil, 1)).fit()


def test_a_full_disk_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(RunStopped, match=r"could not be written.*last good checkpoint is .*00000004.ckpt") as end:
            prepare(
                tmp_path, build=acting(lambda _: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard)), 5)
            ).fit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert end.value.exit_code == 1
    assert "\n" not in str(end.value)
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["step-00000004.ckpt", "step-00000002.ckpt"]
    assert not list((tmp_path / "run").rglob("*.tmp"))
