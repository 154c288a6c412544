"""The check for a machine with a GPU: it runs without one, and tells what is bad."""

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import ssl_blocks as sb
from examples.benchmarks import gpu
from examples.benchmarks.gpu_stages import epoch, feed, right
from examples.benchmarks.gpu_stages.items import Settings, Stage
from examples.benchmarks.gpu_stages.objectives import KINDS, Pass, distance, images_for, run_pass
from examples.benchmarks.gpu_stages.report import append, is_bad, read, summarise

pytestmark = pytest.mark.process  # takes long

ROOT = Path(__file__).parents[2]


@pytest.fixture
def stage(tmp_path):
    return Stage("right", Settings(budget=280, out=tmp_path, data=tmp_path, device="cpu", tiny=True))


@pytest.mark.parametrize(("part", "count"), [(right, len(KINDS) + 10), (feed, 8)], ids=["right", "feed"])
def test_stages_run_without_a_gpu(stage, part, count, monkeypatch):
    # what the tests check in every call does not compile; tests/compile_check.py compiles the same parts
    monkeypatch.setattr(torch, "compile", lambda model, *, dynamic, backend, fullgraph=False: model)
    part.run(stage)
    rows = read(stage.settings.out)
    assert len(rows) == count
    assert not [row for row in rows if is_bad(row) or "skipped" in row]
    assert part is feed or {f"fp32 = CPU: {name}" for name in KINDS} <= {row["item"] for row in rows}


def test_the_command_tells_the_machine_without_a_gpu(tmp_path):
    command = [sys.executable, "examples/benchmarks/gpu.py", "--device", "cpu", "--tiny", "--budget", "280"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command += ["--out", str(tmp_path), "--stages", "machine"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["stage"] for row in read(tmp_path)] == 6 * ["machine"]
    assert "6 results, 0 skipped, 0 bad" in done.stdout


def test_an_item_that_fails_is_reported_and_the_next_one_runs(stage):
    assert stage.run("breaks", lambda: sb.Grid(0, 1)) is None
    assert stage.run("is wrong", lambda: {"ok": False, "loss": float("nan")}) is not None
    assert stage.run("goes on", lambda: {"ok": True}) == {"ok": True}
    rows = read(stage.settings.out)
    assert [is_bad(row) for row in rows] == [True, True, False]
    assert rows[0]["error"].startswith(
        "ValueError: Grid(0, 1) must have at least one size, and every size must be at least 1 ssl_blocks/"
    )
    assert rows[1]["loss"] == "nan"  # JSON has no such number
    text, num_bad = summarise(rows)
    assert text.endswith("3 results, 0 skipped, 2 bad: right/breaks, right/is wrong")
    assert num_bad == 2


def test_an_item_that_takes_too_long_is_broken_off_and_one_without_time_is_skipped(stage):
    stage.settings = stage.settings.with_budget(time.monotonic() - stage.started + 0.3)
    assert stage.run("sleeps", lambda: time.sleep(20) or {}, needs=0.0) is None
    assert stage.run("comes late", dict, needs=60) is None
    slow, late = read(stage.settings.out)
    assert slow["error"].startswith("took more than")
    assert "skipped" in late
    assert not is_bad(late)


@pytest.mark.parametrize("ended", [0, 3, "cut off"])
def test_the_exit_code_tells_whether_all_is_well(tmp_path, monkeypatch, capsys, ended):
    settings = Settings(budget=9, out=tmp_path, data=tmp_path, device="cpu", tiny=True)
    seconds = {}

    def run_stage(name, given):
        seconds[name] = given.budget
        append(given.out, {"stage": name, "item": "item", "ok": True})
        return ended if name == "step" else 0

    monkeypatch.setattr(gpu, "run_stage", run_stage)
    assert gpu.run_all(settings, ["step", "feed"]) == int(ended != 0)
    assert seconds["step"] == pytest.approx(9 * 36 / 41, rel=0.1)
    assert seconds["feed"] == pytest.approx(9, rel=0.1)  # what a stage leaves over goes to the next
    assert ("step/the process" in capsys.readouterr().out) == (ended != 0)


class SeesAll(sb.SegmentCausalMask):
    """Hides nothing."""

    def __call__(self, *args, **kwargs):
        masks = super().__call__(*args, **kwargs)
        return dataclasses.replace(masks, memory=torch.ones_like(masks.memory))


def test_a_leak_and_a_dead_model_are_found():
    torch.manual_seed(0)
    objective = KINDS["blobs"]().eval()
    images = images_for(objective, 2)
    draw = objective.draw(images, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert right.leak(objective, images, draw)["ok"]
        causal, objective.mask = objective.mask, SeesAll()
        found = right.leak(objective, images, draw)
        assert not found["ok"]
        assert found["leak"] > 0
        objective.mask = causal
        torch.nn.init.zeros_(objective.head.weight)
        assert right.leak(objective, images, draw) == {"ok": False, "leak": 0.0, "later_ones_move": False}


def test_passes_that_differ_are_told_apart():
    torch.manual_seed(0)
    objective = KINDS["squares"]()
    images = images_for(objective, 2)
    draw = objective.draw(images)
    found = run_pass(objective, images, draw)
    assert distance(found, found)["grad"] == 0
    name = next(iter(found.gradients))
    doubled = Pass(2 * found.loss, found.gradients | {name: 2 * found.gradients[name]})
    far = distance(doubled, found)
    assert far["loss"] == pytest.approx(1)
    assert (far["worst"], far["of"]) == (pytest.approx(1), name[-40:])
    fewer = Pass(found.loss, {n: g for n, g in found.gradients.items() if n != name})
    assert distance(fewer, found)["missing"] == [name]


def test_pace_is_that_of_the_second_half():
    said = "step 1/4  loss 2.0  5 images/s\nstep 2/4  loss 1.0  5 images/s\nstep 4/4  loss 1.0  8.0 images/s  left 0 s"
    assert epoch.pace(said, batch=10, epochs=2) == pytest.approx(1.0)  # 4 s up to the middle, then one
    assert epoch.pace("step 4/4  loss 1.0  8 images/s", batch=10, epochs=2) is None


def test_images_that_are_not_there_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="--data must name images"):
        epoch.find_images(tmp_path / "cifar10")
