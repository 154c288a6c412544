"""YAML means what it looks like; what cannot be meant is one line with file, key and value."""

from pathlib import Path

import pytest

from ssl_blocks.cli.command import load_config
from ssl_blocks.recipes.esvit import RECIPE as ESVIT
from ssl_blocks.recipes.randsac import RECIPE
from ssl_blocks.yaml_files import read_mapping

BRACKETS = "[" * 20_000
ALIASES = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n"

WRONG = {
    "twice": ("name: y\nname: z", "name is given twice in line 2, column 1"),
    "twice in a section": ("trainer: {epochs: 3, epochs: 3}", "epochs is given twice in line 2"),
    "aliases": (ALIASES, r"\*a is an alias: write out what it stands for in line 3"),
    "brackets": (f"note: {BRACKETS}", "more than 30 levels lie in each other in line 2"),
    "braces": ("note: " + "{a: " * 20_000, "more than 30 levels lie in each other in line 2"),
    "number as key": ("1: 3", "the key 1 must be text in line 2"),
    "list as key": ("data: {? [1] : 2}", "the key a list or mapping must be text"),
    "two documents": ("---\nname: y", "another document"),
    "other objects": ("note: !!python/name:os.system", "could not determine a constructor"),
    "long": ("note: " + "a" * 2**20, r"has 1,048,\d+ bytes, but a configuration must have at most 1,048,576"),
    "truth": ("seed: true", "seed='true' must be a whole number"),
    "truth for a float": ("optimizer: {weight_decay: false}", "optimizer.weight_decay='false' must be a number"),
    "truth in a list": ("optimizer: {betas: [true, 0.5]}", "optimizer.betas='true' must be a number"),
    "truth for sides": ("data: {image_size: true}", "data.image_size='true' must be a whole number"),
    "sexagesimal": ("trainer: {epochs: 1:30}", "trainer.epochs='1:30' must be a whole number"),
    "sexagesimal float": ("optimizer: {base_lr: 1:30.5}", "optimizer.base_lr='1:30.5' must be a number"),
    "hexadecimal": ("seed: 0x10", "seed='0x10' must be a whole number"),
    "counts": (
        "segments: {kind: blob, counts: [3, 1000000000]}",
        "counts=1000000000 must be at most 65,536",
    ),
    "checkpoints": ("trainer: {checkpoint_every: 1e308}", "checkpoint_every=1e308 must be at most 1,000,000"),
    "seed": ("seed: 9223372036854775808", "seed=9223372036854775808 must be at most 9.22"),
    "digits": ("seed: " + "9" * 5000, r"seed=9+\.\.\. \(5000 characters\) must be a whole number"),
    "depth": ("encoder: {depth: 10000000}", "encoder.depth=10000000 must be at most 1,000"),
    "width": ("encoder: {width: 1e30}", r"encoder.width=1e30 must be a whole number"),
    "rate": ("optimizer: {base_lr: 1e300}", r"optimizer.base_lr=1e300 must be at most 1,000,000"),
    "memory": ("data: {max_memory_gib: 1e200}", r"data.max_memory_gib=1e200 must be at most 1,048,576"),
    "images": ("data: {max_train: 10000000000}", "data.max_train=10000000000 must be at most 2,147,483,647"),
    "pair": ("segments: {kind: blob, std_range: [0.1, 1e99]}", r"std_range=1e99 must be at most 1,000,000,000"),
    "name": ("", r"name='x+\.\.\. \(302 characters\) must name a folder: at most 200 bytes, not 300"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_meant_is_one_line(case: str, tmp_path: Path) -> None:
    text, message = WRONG[case]
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: {'x' * 300 if case == 'name' else 'x'}\n{text}\n")
    with pytest.raises(ValueError, match=message) as refusal:
        load_config(RECIPE, ["--preset", str(path)])
    assert str(path) in str(refusal.value)
    assert len(str(refusal.value)) < 500


def test_small_crops_are_counted(tmp_path: Path) -> None:
    preset = next(iter(ESVIT.preset_files()))
    with pytest.raises(ValueError, match=r"num_local=1000000 must be at most 100"):
        load_config(ESVIT, ["--preset", preset, "--crops.num_local", "1000000"])


def test_values_are_what_they_look_like(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: 2024-01-01\nnote: 1:30\nseed: 12\ntrainer: {graph: off, epochs: 7, compile: true, knn_every: null}\n"
        "optimizer: {base_lr: 1e-3, min_lr: 1.0e-05, weight_decay: .5, betas: [-0, 0.9]}\ndata: {flip: no}\n"
    )
    config = load_config(RECIPE, ["--preset", str(path)])
    assert (config.name, config.note, config.seed) == ("2024-01-01", "1:30", 12)
    assert (config.trainer.graph, config.trainer.epochs, config.trainer.compile) == ("off", 7, True)
    assert config.trainer.knn_every is None
    assert (config.optimizer.base_lr, config.optimizer.min_lr, config.optimizer.weight_decay) == (1e-3, 1e-5, 0.5)
    assert config.data.flip is False


def test_what_is_written_is_read(tmp_path: Path) -> None:
    import yaml

    values = {
        "a": [1, -2.5, 1e-300, 1e22, True, None, "true", "1:30", "0x1", "1e-3", "", "~", "2024-01-01", "off", "[/x]"]
    }
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(values))
    assert read_mapping(tmp_path / "a.yaml") == values
