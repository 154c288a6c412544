"""Wrong input: one readable line, exit code 2, no traceback, and not a byte changed on disk."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from ssl_blocks.cli import main
from ssl_blocks.pretrain import Run
from ssl_blocks.recipes.randsac import RECIPE

ROOT = Path(__file__).parents[2]

DIGITS = ("--preset", "randsac_digits")


def prepare_folder(path: Path) -> None:
    """Lay out what the wrong inputs point at, relative to the folder in which the command runs."""
    files = {
        "runs/randsac_digits/config.yaml": "name: randsac_digits\n",
        "runs/randsac_digits/metrics.csv": "precious\n",
        "file": "no folder\n",
        "images/a/text.jpg": "no picture\n",
        "broken.yaml": "name: [\n",
        "list.yaml": "- 1\n",
        "unknown.yaml": "name: x\ntrainer: {epoch: 3}\n",
        "value.yaml": "name: x\nencoder: {positions: sinus}\n",
        "binary.yaml": "\0\1",
    }
    for name, text in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    (path / "empty").mkdir()
    (path / "classless" / "a").mkdir(parents=True)
    for i in range(12):
        file = path / "odd" / f"{i}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (10, 14), (i, 2 * i, 3 * i)).save(file)


def fingerprint(path: Path) -> dict[str, str]:
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "folder"
        for file in sorted(path.rglob("*"))
    }


FRESH = (*DIGITS, "--name", "fresh")

# arguments, and what the one line must say: the option, its value, and what was expected or is nearest
WRONG = {
    # options
    "nothing": ((), ("name is required", "--preset")),
    "typo": ((*FRESH, "--trainer.epoch", "3"), ("--trainer.epoch ", "did you mean --trainer.epochs?")),
    "no section": ((*FRESH, "--epochs=3"), ("--epochs=3", "did you mean --trainer.epochs?")),
    "dash": ((*FRESH, "--dry_run"), ("--dry_run", "did you mean --dry-run?")),
    "bogus": ((*FRESH, "--bogus", "1"), ("--bogus is no known option", "--help lists all")),
    "abbreviation": ((*FRESH, "--pre", "x"), ("--pre ", "did you mean --preset?")),
    "short option": ((*FRESH, "-e", "3"), ("'-e' stands alone",)),
    "stray word": (("randsac_digits",), ("'randsac_digits' stands alone", "--preset NAME")),
    "no value": ((*FRESH, "--trainer.epochs"), ("--trainer.epochs needs a value",)),
    "value swallowed": ((*FRESH, "--trainer.epochs", "--seed", "1"), ("--trainer.epochs needs a value",)),
    "twice": ((*FRESH, "--seed", "1", "--seed=2"), ("--seed is given twice, as 1 and as 2",)),
    "two presets": ((*DIGITS, "--preset", "randsac_cifar10"), ("--preset is given twice", "randsac_cifar10")),
    "switch with value": ((*FRESH, "--dry-run=yes"), ("--dry-run=yes", "takes no value")),
    # presets
    "preset typo": (("--preset", "randsac_digit"), ("'randsac_digit'", "did you mean 'randsac_digits'?")),
    "preset file missing": (("--preset", "nowhere.yaml"), ("'nowhere.yaml' is neither a preset nor a YAML file",)),
    "preset no YAML": (("--preset", "broken.yaml"), ("broken.yaml is not valid YAML", "in line 2")),
    "preset binary": (("--preset", "binary.yaml"), ("binary.yaml is not valid YAML",)),
    "preset a list": (("--preset", "list.yaml"), ("list.yaml must hold a mapping", "list")),
    "preset unknown key": (
        ("--preset", "unknown.yaml"),
        ("trainer.epoch ", "did you mean trainer.epochs?", "(in --preset unknown.yaml)"),
    ),
    "preset wrong value": (
        ("--preset", "value.yaml"),
        ("encoder.positions='sinus' must be 'sincos'", "did you mean 'sincos'? (in --preset value.yaml)"),
    ),
    # numbers and choices
    "zero": ((*FRESH, "--trainer.epochs", "0"), ("trainer.epochs=0 must be greater than 0",)),
    "negative": ((*FRESH, "--optimizer.weight_decay", "-1"), ("optimizer.weight_decay=-1 must be at least 0",)),
    "negative, exponent": ((*FRESH, "--optimizer.base_lr", "-1e-3"), ("optimizer.base_lr=-1e-3 must be greater",)),
    "negative seed": ((*FRESH, "--seed=-1"), ("seed=-1 must be at least 0",)),
    "no number": ((*FRESH, "--trainer.epochs", "many"), ("trainer.epochs='many' must be a whole number",)),
    "half": ((*FRESH, "--trainer.epochs", "2.5"), ("trainer.epochs=2.5 must be a whole number",)),
    "empty": ((*FRESH, "--trainer.epochs="), ("trainer.epochs='' must be a whole number",)),
    "nan": ((*FRESH, "--optimizer.base_lr", "nan"), ("optimizer.base_lr=nan must be a finite number",)),
    "infinite": ((*FRESH, "--optimizer.base_lr", "inf"), ("optimizer.base_lr=inf must be a finite number",)),
    "nan decay": ((*FRESH, "--optimizer.weight_decay", "nan"), ("optimizer.weight_decay=nan must be a finite",)),
    "no boolean": ((*FRESH, "--data.flip", "perhaps"), ("data.flip='perhaps' must be true or false",)),
    "precision": (
        (*FRESH, "--trainer.precision", "bf17"),
        ("trainer.precision='bf17' must be 'auto', 'bf16', 'bf16-pure', 'fp32' or 'tf32'", "did you mean 'bf16'?"),
    ),
    "one of several kinds": (
        (*FRESH, "--trainer.look_every", "0"),
        ("error: trainer.look_every=0 must be greater than 0; trainer.look_every=0 must be 'auto'",),
    ),
    "device": ((*FRESH, "--trainer.device", "gpu"), ("trainer.device='gpu' must be 'auto', 'cpu' or 'cuda'",)),
    "no GPU": ((*FRESH, "--trainer.device", "cuda"), ("trainer.device='cuda' needs a CUDA GPU",)),
    "two at once": ((*FRESH, "--trainer.epochs", "0", "--seed=-1"), ("trainer.epochs=0", "; ", "seed=-1")),
    # pairs
    "betas": ((*FRESH, "--optimizer.betas", "0.9,1.5"), ("optimizer.betas=1.5 must be less than 1",)),
    "one beta": ((*FRESH, "--optimizer.betas", "0.9"), ("optimizer.betas=0.9 must be 2 values",)),
    "three betas": ((*FRESH, "--optimizer.betas", "0.9,0.9,0.9"), ("optimizer.betas=0.9,0.9,0.9 must be 2 values",)),
    "no beta": ((*FRESH, "--optimizer.betas", "a,b"), ("optimizer.betas='a' must be a number",)),
    "crop reversed": ((*FRESH, "--data.crop_scale", "1,0.2"), ("data.crop_scale=1,0.2 must be (smallest, largest)",)),
    "crop above 1": ((*FRESH, "--data.crop_scale", "0.5,2"), ("data.crop_scale=0.5,2 must be", "at most 1")),
    # segments
    "kind": ((*FRESH, "--segments.kind", "squares"), ("segments.kind='squares'", "did you mean 'square'?")),
    "counts of squares": (
        (*FRESH, "--segments.counts", "7"),
        ("segments.counts goes with segments.kind=blob, not with square, which takes segments.sides",),
    ),
    "sides of blobs": (
        (*FRESH, "--segments.kind", "blob", "--segments.sides", "2"),
        ("segments.sides goes with segments.kind=square, not with blob",),
    ),
    "sides and grid": ((*FRESH, "--segments.sides", "3"), ("sides=(3,) must divide the grid 4x4",)),
    "sides and sides": ((*FRESH, "--segments.sides", "2,3"), ("segments: sides=(2, 3)",)),
    "sides zero": ((*FRESH, "--segments.sides", "0"), ("segments.sides", "0", "greater than 0")),
    "counts rising": (
        (*FRESH, "--segments.kind", "blob", "--segments.counts", "3,7"),
        ("segments: counts=(3, 7) must fall",),
    ),
    "deviation": (
        (*FRESH, "--segments.kind", "blob", "--segments.std_range", "0,1"),
        ("segments: std_range=(0.0, 1.0) must be",),
    ),
    "one segment": ((*FRESH, "--segments.sides", "4"), ("nothing is left to predict",)),
    # encoder and decoder
    "model": ((*FRESH, "--encoder.name", "vit_tiny_patch17"), ("encoder: name='vit_tiny_patch17' is no timm model",)),
    "swin": ((*FRESH, "--encoder.name", "swin_tiny_patch4_window7_224"), ("relative position biases", "vit_base")),
    "resnet": ((*FRESH, "--encoder.name", "resnet18"), ("encoder: ResNet is not a timm VisionTransformer",)),
    "hybrid": ((*FRESH, "--encoder.name", "vit_tiny_r_s16_p8_224"), ("encoder: ", "stem, which mixes pixels")),
    "heads": ((*FRESH, "--encoder.heads", "5"), ("encoder: num_heads=5 must divide embed_dim=64",)),
    "decoder heads": ((*FRESH, "--decoder.heads", "5"), ("num_heads=5 must divide dim=64",)),
    "patch": ((*FRESH, "--encoder.patch_size", "3"), ("patch_size=3 must divide image_size=(8, 8)",)),
    # optimizer and trainer
    "batch above data": ((*FRESH, "--optimizer.batch_size", "5000"), ("optimizer.batch_size=5000 must not exceed",)),
    "batch in parts": (
        (*FRESH, "--optimizer.accumulate", "7"),
        ("optimizer.batch_size=64 must be a multiple", "optimizer.accumulate", "1 x 7"),
    ),
    "batch in processes": ((*FRESH, "--trainer.devices", "3"), ("optimizer.batch_size=64 must be a multiple", "3 x 1")),
    "TF32 on CPU": (
        (*FRESH, "--trainer.precision", "tf32", "--trainer.device=cpu"),
        ("trainer.precision='tf32' needs a CUDA GPU",),
    ),
    "pure in processes": (
        (*FRESH, "--trainer.precision", "bf16-pure", "--trainer.devices", "2"),
        ("trainer.precision='bf16-pure' trains in one process, but there are 2",),
    ),
    "compile mode": (
        (*FRESH, "--trainer.compile_mode", "reduce-overheads"),
        ("trainer.compile_mode='reduce-overheads' must be", "did you mean 'reduce-overhead'?"),
    ),
    "two kinds of graphs": (
        (*FRESH, "--trainer.compile", "true", "--trainer.compile_mode=reduce-overhead", "--trainer.graph", "on"),
        ("trainer.compile_mode=reduce-overhead makes CUDA graphs of its own", "trainer.graph=off"),
    ),
    "fsdp alone": ((*FRESH, "--trainer.strategy", "fsdp"), ("trainer.strategy='fsdp' needs at least two processes",)),
    "rate rises": ((*FRESH, "--optimizer.min_lr", "1"), ("optimizer.min_lr=1 must not exceed the peak rate 0.002",)),
    # data
    "data typo": ((*FRESH, "--data.name", "digit"), ("data: name='digit' must be one of", "did you mean 'digits'?")),
    "no folder": (
        (*FRESH, "--data.name", "imagefolder:nowhere"),
        ("imagefolder:nowhere must name an existing folder",),
    ),
    "no path": ((*FRESH, "--data.name", "imagefolder:"), ("imagefolder:PATH",)),
    "empty folder": ((*FRESH, "--data.name", "imagefolder:empty"), ("imagefolder:empty must hold images",)),
    "empty class": (
        (*FRESH, "--data.name", "imagefolder:classless"),
        ("imagefolder:classless must hold images or class folders, but has neither",),
    ),
    "text for image": ((*FRESH, "--data.name", "imagefolder:images"), ("images/a/text.jpg",)),
    "odd size": (
        (*FRESH, "--data.name", "imagefolder:odd", "--encoder.patch_size", "4", "--optimizer.batch_size", "4"),
        ("patch_size=4 must divide image_size=(14, 10)",),
    ),
    "no memory": ((*FRESH, "--data.storage", "memory", "--data.max_memory_gib", "1e-6"), ("max_",)),
    # the run's folder
    "holds a run": (DIGITS, ("randsac_digits already holds a run", "--name")),
    "slash": ((*DIGITS, "--name", "a/b"), ("name='a/b' must name a folder",)),
    "dots": ((*DIGITS, "--name", ".."), ("name='..' must name a folder",)),
    "no name": ((*DIGITS, "--name="), ("name='' must name a folder",)),
    "output is a file": ((*FRESH, "--output_dir", "file"), ("output_dir='file' must be a folder",)),
    "output below a file": ((*FRESH, "--output_dir", "file/below"), ("output_dir='file/below'", "file is a file")),
    # going on
    "resume nowhere": (("--resume", "runs/none"), ("--resume runs/none", "config.yaml")),
    "resume no run": (("--resume", "empty"), ("--resume empty", "config.yaml")),
    "resume and preset": ((*DIGITS, "--resume", "runs/x"), ("--preset randsac_digits contradicts --resume runs/x",)),
    "resume and name": (("--resume", "runs/x", "--name", "y"), ("--name y contradicts --resume runs/x",)),
    # a dry run looks just as closely
    "dry typo": ((*FRESH, "--dry-run", "--sed", "1"), ("--sed ", "did you mean --seed?")),
    "dry heads": ((*FRESH, "--dry-run", "--encoder.heads", "5"), ("num_heads=5 must divide",)),
    "dry sides": ((*FRESH, "--dry-run", "--segments.sides", "3"), ("sides=(3,) must divide the grid 4x4",)),
    "dry batch": ((*FRESH, "--dry-run", "--optimizer.batch_size", "5000"), ("batch_size=5000 must not exceed",)),
    "dry parts": ((*FRESH, "--dry-run", "--optimizer.accumulate", "7"), ("must be a multiple", "1 x 7")),
    "dry without data": (
        (*FRESH, "--dry-run", "--data.name", "imagefolder:nowhere"),
        ("data.image_size=None needs the data", "nowhere"),
    ),
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    prepare_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(Run, "fit", lambda run: pytest.fail("a run began"))
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def check_line(text: str, said: tuple[str, ...]) -> None:
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    assert text.endswith("\n")
    assert "Traceback" not in text
    for part in said:
        assert part in text


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line_and_exit_code_2_and_changes_nothing(
    case: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv, said = WRONG[case]
    before = fingerprint(place)
    assert main(RECIPE, argv=argv) == 2
    printed = capsys.readouterr()
    check_line(printed.err, said)
    assert printed.out == ""
    assert fingerprint(place) == before


def test_folder_that_may_not_be_written_is_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # root may write anywhere
    monkeypatch.setattr(os, "access", lambda path, mode: not (mode & os.W_OK and Path(path) == place / "empty"))
    argv = [*FRESH, "--output_dir", "empty"]
    assert main(RECIPE, argv=argv) == 2
    check_line(capsys.readouterr().err, ("output_dir='empty' must be writable",))


def test_only_the_first_of_several_processes_speaks_for_all(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    started = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for name, value in (started | {"TORCHELASTIC_RUN_ID": "x", "MASTER_PORT": "29500"}).items():
        monkeypatch.setenv(name, value)
    assert main(RECIPE, argv=[*FRESH, "--bogus", "1"]) == 2
    printed = capsys.readouterr()  # marked, for it may be a mistake of that process alone
    assert printed.err == "error in another process: --bogus is no known option (--help lists all)\n"
    assert printed.out == ""


@pytest.mark.process
def test_real_process_says_the_same(place: Path) -> None:
    argv, said = WRONG["bogus"]
    before = fingerprint(place)
    command = [sys.executable, str(ROOT / "examples" / "randsac.py"), *argv]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=place, env=environment, timeout=120)
    assert done.returncode == 2
    check_line(done.stderr, said)
    assert done.stdout == ""
    assert fingerprint(place) == before


def test_there_are_enough_of_them() -> None:
    assert len(WRONG) >= 40
