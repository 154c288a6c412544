"""Every recipe trains the same where a step is one function, compiled or with weights of 16 bits."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ssl_blocks.cli import load_config
from ssl_blocks.data import ImageData
from ssl_blocks.engine import Machine, graph
from ssl_blocks.engine.fit import fit
from ssl_blocks.engine.loop import Loop
from ssl_blocks.objectives import prediction
from ssl_blocks.parts import attention, decode, serialize
from ssl_blocks.pretrain import PretrainModule, RunConfig
from ssl_blocks.pretrain.recipe import build
from ssl_blocks.recipes import RECIPES
from tests.engine.tape import FusedLoop, TapeLoop
from tests.pretrain.test_module import Recorder, small_objective, some_config
from tests.recipes import some_data

pytestmark = pytest.mark.process  # takes long

TINY = ("--encoder.depth=2", "--encoder.width=16", "--encoder.heads=2", "--encoder.patch_size=4")
VIEWS = ("--crops.num_local=1", "--crops.local_size=8", "--crops.blur_sigma=[0.1,0.5]")
HEADS = ("--head.out_dim=16", "--head.hidden=16", "--head.bottleneck=8", "--head.freeze_epochs=1")
DINO = (
    "--dino.num_local=1",
    "--dino.local_size=8",
    "--dino.out_dim=16",
    "--dino.hidden_dim=16",
    "--dino.bottleneck_dim=8",
)
OPTIONS = {
    "randsac": (*TINY, "--decoder.depth=1", "--decoder.heads=2"),
    "mae": (*TINY, "--decoder.depth=1", "--decoder.width=8", "--decoder.heads=2"),
    "saim": (*TINY, "--query_depth=2"),
    "apl": ("--encoder.kind=original", "--encoder.depth=2", "--encoder.heads=3", "--grid=2"),
    "esvit": (*TINY, *VIEWS, *HEADS, "--encoder.kind=vit", "--optimizer.clip_grad=0.5"),
    "combined": (*TINY, *DINO, "--decoder.depth=1", "--decoder.heads=2"),
}
STEPS = ("--optimizer.batch_size=16", "--optimizer.warmup_epochs=1", "--trainer.epochs=2", "--optimizer.base_lr=0.05")


def configure(name: str, *more: str) -> RunConfig:
    return load_config(RECIPES[name], ["--name=x", "--data.image_size=16", *OPTIONS[name], *STEPS, *more])


def trained(
    name: str, machine: Machine, data: ImageData, kind: type[Loop] = Loop
) -> tuple[list[float], dict[str, Any]]:
    config = configure(name, "--optimizer.weight_decay_end=0.5")
    module = PretrainModule(build(config, RECIPES[name].assemble, data), data, config)
    module.check()
    told: list[str] = []
    loop = kind(module, machine, tell=told.append)
    fit(loop)
    assert told == []
    if isinstance(loop, TapeLoop):
        assert loop.replays > 0
    return loop.losses, {key: value.clone() for key, value in module.objective.state_dict().items()}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_leaves_the_same_bits_where_steps_are_replayed_and_nearly_the_same_in_pure_16_bits(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (attention, serialize, prediction, decode):  # as on a GPU
        monkeypatch.setattr(module, "can_be_looked_at", lambda _: False)
    monkeypatch.setattr(graph, "WARM_UP", 1)  # enough for moments
    data, dtype = some_data(32), torch.bfloat16
    losses, plain = trained(name, Machine(autocast_dtype=dtype), data, FusedLoop)
    same, taped = trained(name, Machine(autocast_dtype=dtype, graph="on"), data, TapeLoop)
    assert losses == same
    assert [key for key in plain if not torch.equal(plain[key], taped[key])] == []
    near, pure = trained(name, Machine(autocast_dtype=dtype, pure=True), data)
    assert near == pytest.approx(losses, rel=5e-3)  # autocast rounds the same weights, but adds gradients up in 32 bits
    assert {key: value.dtype for key, value in pure.items()} == {key: value.dtype for key, value in plain.items()}
    ours, theirs = (torch.cat([x.flatten().double() for x in state.values()]) for state in (pure, plain))
    assert (ours - theirs).norm() < 0.01 * theirs.norm()


def test_what_is_compiled_is_the_step_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, ran = [], []

    def compiling(model: torch.nn.Module, **options: Any) -> Any:
        asked.append(options)
        return lambda *args: (ran.append("noise" if isinstance(args[0], tuple) else len(args[0])), model(*args))[1]

    monkeypatch.setattr(torch, "compile", compiling)  # what it makes of objectives: tests/objectives/test_compile.py
    config = some_config()
    trainer = config.trainer.model_copy(update={"compile": True, "compile_mode": "max-autotune-no-cudagraphs"})
    plain, objective = small_objective(), small_objective()
    data = some_data(16)
    fit(Loop(PretrainModule(plain, data, config)))
    assert asked == []
    module = PretrainModule(objective, data, config.model_copy(update={"trainer": trainer}))
    module.check()
    assert ran == []  # it tries two images, of another shape and maybe on another device
    fit(Loop(module))
    assert asked == [{"dynamic": False, "mode": "max-autotune-no-cudagraphs"}] * 2
    assert ran == ["noise", 8] * 4
    assert objective(torch.zeros(2, 3, 16, 16)).loss.isfinite()
    assert len(ran) == 8
    assert all(map(torch.equal, plain.parameters(), objective.parameters()))


def test_plain_numbers_of_the_parts_that_follow_a_schedule_are_named() -> None:
    class Growing(Recorder):
        def before_step(self, progress) -> None:
            super().before_step(progress)
            self.factor = float(progress.epoch)

    module = PretrainModule(Growing(small_objective()), some_data(), some_config())
    found = []
    for step in (0, 1, 5):
        module.before_step(module.plan.progress(step))
        found.append(module.baked())
    assert "Growing.factor=0.0" in found[0]
    assert found[0] == found[1] != found[2]


def test_a_run_is_told_of_what_its_options_choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ssl_blocks.pretrain import Run

    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    options = [
        f"--output_dir={tmp_path}",
        "--data.name=digits",
        "--data.image_size=16",
        "--data.max_train=64",
        "--data.max_test=8",
    ]
    for more, expected in (
        ((), (False, "auto")),
        (("--trainer.precision=bf16-pure",), (True, "auto")),
        (("--trainer.graph=on",), (False, "on")),
        (("--trainer.compile=true", "--trainer.compile_mode=reduce-overhead"), (False, "off")),
    ):
        config = load_config(RECIPES["randsac"], ["--name=x", *options, *OPTIONS["randsac"], *STEPS, *more])
        run = Run.prepare(config, RECIPES["randsac"].assemble)
        assert (run.loop.machine.pure, run.loop.machine.graph) == expected
        monkeypatch.setattr("ssl_blocks.pretrain.module.WORTH_COMPILING", 1)
        for device in ("cpu", "cuda"):
            run.machine = Machine(device)
            is_told = any("trainer.compile=true" in remark for remark in run._remarks())
            assert is_told == (device == "cuda" and not config.trainer.compile)
