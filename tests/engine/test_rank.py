"""What the environment says of several processes is true, or told in one line by every process."""

import pytest

from ssl_blocks.cli import main
from ssl_blocks.engine.parallel import count_processes, environment_plugins
from ssl_blocks.engine.rank import NUMBERS, check_environment, is_rank_zero
from ssl_blocks.engine.settings import OptimizerConfig, TrainerConfig
from ssl_blocks.recipes.randsac import RECIPE

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "0",
    "SLURM_NTASKS": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_NTASKS_PER_NODE": "2",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch):
    """Set these variables of processes, and no others."""

    def put(values: dict[str, str]) -> None:
        for name in {*NUMBERS, *TORCHRUN, *SRUN, "SLURM_JOB_NAME"}:
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.mark.parametrize("values", [{}, TORCHRUN, SRUN, {"RANK": "3"}, {"LOCAL_RANK": "1"}, {"SLURM_NTASKS": "4"}])
def test_what_can_be_is_let_through(environment, values: dict[str, str]) -> None:
    environment(values)
    check_environment()


WRONG = [
    ({"RANK": "abc"}, "RANK='abc' in the environment must be a whole number: unset it"),
    ({"RANK": "-1"}, "RANK='-1' in the environment"),
    ({"RANK": "²"}, "RANK='²' in the environment"),
    ({"LOCAL_RANK": ""}, "LOCAL_RANK='' in the environment"),
    (TORCHRUN | {"WORLD_SIZE": "two"}, "WORLD_SIZE='two' in the environment"),
    (SRUN | {"SLURM_PROCID": "1.0"}, "SLURM_PROCID='1.0' in the environment"),
    (
        {"TORCHELASTIC_RUN_ID": "x", "RANK": "1"},
        "TORCHELASTIC_RUN_ID is in the environment, but WORLD_SIZE,",
    ),
    ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE=2 is in the environment, but LOCAL_RANK, .* are not: start all"),
    ({n: v for n, v in TORCHRUN.items() if n != "MASTER_PORT"}, "but MASTER_PORT is not"),
    (TORCHRUN | {"RANK": "4"}, "RANK=4 in the environment must be below WORLD_SIZE=4"),
    (TORCHRUN | {"LOCAL_RANK": "2"}, "LOCAL_RANK=2 in the environment must be below LOCAL_WORLD_SIZE=2"),
    ({"SLURM_STEP_NUM_TASKS": "2"}, "SLURM_STEP_NUM_TASKS=2 is in the environment, but SLURM_PROCID is not"),
]


@pytest.mark.parametrize(("values", "message"), WRONG)
def test_what_cannot_be_is_told(environment, values: dict[str, str], message: str) -> None:
    environment(values)
    with pytest.raises(ValueError, match=message):
        check_environment()


def test_the_command_tells_it_in_one_line(environment, capsys: pytest.CaptureFixture[str]) -> None:
    for program in (lambda: main(RECIPE, ["--help"]), lambda: evaluate(["--help"])):
        environment({"TORCHELASTIC_RUN_ID": "x", "RANK": "1"})
        assert program() == 2
        shown = capsys.readouterr()
        assert shown.err.startswith("error: TORCHELASTIC_RUN_ID is in the environment, but")
        assert shown.err.count("\n") == 1
        assert not shown.out


def evaluate(argv: list[str]) -> int:
    from ssl_blocks.evaluate import main

    return main(argv)


@pytest.mark.parametrize(
    ("values", "speaks"), [({}, True), (TORCHRUN, False), (TORCHRUN | {"RANK": "0"}, True), (SRUN, False)]
)
def test_the_first_process_speaks(environment, values: dict[str, str], speaks: bool) -> None:
    environment(values)
    assert is_rank_zero() is speaks


def test_starters_that_started_nothing_are_named(environment) -> None:
    settings = OptimizerConfig(batch_size=8)
    environment({"SLURM_NTASKS": "4"})
    with pytest.raises(ValueError, match=r"SLURM_NTASKS=4, but srun has not started this process: use srun, or trai"):
        count_processes(TrainerConfig(), settings)
    assert count_processes(TrainerConfig(devices=1), settings).world_size == 1
    assert [type(plugin).__name__ for plugin in environment_plugins()] == ["LightningEnvironment"]
    environment(SRUN)
    assert [type(plugin).__name__ for plugin in environment_plugins()] == ["SLURMEnvironment"]
    environment({"LOCAL_RANK": "1"})
    assert count_processes(TrainerConfig(), settings).world_size == 1
    with pytest.raises(ValueError, match="LOCAL_RANK=1 is left over in the environment, and nothing has started 2"):
        count_processes(TrainerConfig(devices=2), settings)
    environment({"LOCAL_RANK": "1", "NODE_RANK": "0"})  # as Lightning starts them
    assert count_processes(TrainerConfig(devices=2), settings).world_size == 2
