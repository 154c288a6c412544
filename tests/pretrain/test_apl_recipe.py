"""The APL recipe runs from its command line's options to an encoder that can be loaded and a puzzle that is scored."""

import csv
import json
from pathlib import Path

import pytest
import timm
import torch

import ssl_blocks as sb
from ssl_blocks.cli import load_config
from ssl_blocks.data import load, to_float
from ssl_blocks.pretrain import Run
from ssl_blocks.pretrain.dryrun import describe
from ssl_blocks.recipes.apl import RECIPE, APLConfig
from tests.pretrain.small import BARE

pytestmark = pytest.mark.process  # takes long

SMALL = [
    "--name=apl",
    "--data.name=digits",
    "--data.image_size=17",
    "--data.crop_scale=1,1",
    "--data.max_train=64",
    "--data.max_test=40",
    "--grid=3",
    "--crop=1",
    "--encoder.kind=original",
    "--encoder.depth=2",
    "--encoder.heads=2",
    "--optimizer.batch_size=32",
    "--optimizer.warmup_epochs=0.5",
    "--trainer.epochs=1",
    "--trainer.device=cpu",
    *BARE,
]
KINDS = {
    "original": ("--encoder.kind=original",),
    "vit": ("--encoder.kind=vit", "--encoder.width=16", "--encoder.dropout=0.1", "--head=mlp"),
}


def configure(folder: Path, *more: str) -> APLConfig:
    given = {option.partition("=")[0] for option in more}
    options = [option for option in SMALL if option.partition("=")[0] not in given]
    return load_config(RECIPE, [*options, f"--output_dir={folder}", *more])


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_leaves_an_encoder_and_the_accuracy_of_its_puzzles(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = ("--trainer.score=true", "--trainer.figures=true") if kind == "original" else ()
    run = Run.prepare(configure(tmp_path, *KINDS[kind], *shown), RECIPE.assemble)
    folder = run.fit()
    objective = run.module.objective.eval()
    data = load("digits", image_size=17, max_train=64, max_test=40)
    images = to_float(data.test.images, data.mean, data.std)
    patches = objective.tokenizer(images)
    assert patches.shape == (40, 9, 1, 4, 4)

    again = sb.encoders.load_encoder(folder / "encoder")
    with torch.no_grad():
        features = objective.encoder.features(patches)
        torch.testing.assert_close(again.features(patches), features, rtol=1e-5, atol=1e-6)
        solved = objective.measure(images)
    results = json.loads((folder / "results.json").read_text())
    names = ["puzzle_top1", "puzzle_top3", "puzzle_top5"]
    assert list(results["objective"]) == names
    # the run may have counted in 16 bits, where two logits of some patch may change places
    assert [results["objective"][n] for n in names] == pytest.approx([solved[n].item() for n in names], abs=0.02)
    scored = [s["name"] for s in results["scores"]]
    assert scored == (["raw pixels", "random encoder", "pretrained encoder"] if shown else [])
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    logged = [row for row in rows if row["loss"]]
    assert logged
    assert all(0 <= float(row["puzzle_top1"]) <= float(row["puzzle_top3"]) <= 1 for row in logged)
    printed = " ".join(capsys.readouterr().out.split())
    assert "the objective on test images" in printed
    assert f"{results['objective']['puzzle_top1']:.1%}" in printed
    assert (folder / "figures" / "puzzles.png").is_file() == bool(shown)
    if kind == "vit":
        model = timm.create_model(f"local-dir:{folder / 'encoder'}", pretrained=True).eval()
        cut = sb.PatchTokenizer(image_size=12, patch_size=4, channels=1).untokenize(patches)
        with torch.no_grad():
            torch.testing.assert_close(model(cut), features, rtol=1e-5, atol=1e-6)


def test_the_choices_reach_the_parts(tmp_path: Path) -> None:
    objective = Run.prepare(
        configure(tmp_path, *KINDS["original"], "--patch_dropout=0.25", "--encoder.mlp_ratio=2"), RECIPE.assemble
    ).module.objective
    assert objective.patch_dropout == 0.25
    assert objective.encoder.model_args == {
        "grid": (3, 3),
        "patch": (4, 4),
        "channels": 1,
        "depth": 2,
        "num_heads": 2,
        "mlp_ratio": 2,
        "dropout": 0.15,
    }
    assert isinstance(objective.head, torch.nn.Linear)
    vit = Run.prepare(configure(tmp_path, *KINDS["vit"]), RECIPE.assemble).module.objective
    assert (vit.encoder.dim, vit.encoder.patch, vit.encoder.module.pos_embed) == (16, (4, 4), None)
    assert vit.encoder.module.blocks[0].mlp.drop1.p == 0.1
    assert (vit.head.fc1.out_features, type(vit.head.act), vit.head.fc2.out_features) == (48, torch.nn.ReLU, 9)


def test_a_dry_run_describes_it_without_data(tmp_path: Path) -> None:
    text = describe(configure(tmp_path, *KINDS["original"]), RECIPE.assemble)
    assert "FLOPs per image" in text
    assert "segments of one image" not in text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--grid=1",), "grid=1 must be at least 2"),
        (("--grid=18",), "grid=18 must be at least 1 and at most one cell per pixel"),
        (("--crop=5",), "crop=5 must be at least 0 and smaller than the cells of 5x5 pixels that grid=3 makes"),
        (("--crop=-1",), "crop=-1 must be at least 0"),
        (("--patch_dropout=1",), "patch_dropout=1 must be less than 1"),
        (("--patch_dropout=-0.1",), "patch_dropout=-0.1 must be at least 0"),
        (("--encoder.heads=3",), "encoder: num_heads=3 must divide the width 16, which is the values of a patch"),
        (("--encoder.kind=vit", "--encoder.width=16", "--encoder.heads=3"), "encoder: num_heads=3 must divide embed_d"),
        (("--encoder.kind=timm",), "encoder.kind='timm' must be one of original, vit"),
        (("--encoder.patch_size=4",), "--encoder.patch_size=4 is no known option"),
        (("--encoder.positions=sincos",), "--encoder.positions=sincos is no known option"),
        (("--encoder.width=8",), "encoder.width goes with encoder.kind=vit, not with original"),
        (("--head=tree",), "head='tree' must be 'linear' or 'mlp'"),
        (("--optimizer.warmup_start=2",), "optimizer.warmup_start=2 must be at most 1|less than or equal to 1"),
    ],
)
def test_wrong_options_are_named(options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Run.prepare(configure(tmp_path, *options), RECIPE.assemble)
    assert not list(tmp_path.iterdir())


def test_objectives_without_measures_report_none(tmp_path: Path) -> None:
    from ssl_blocks.pretrain.scoring import measure_objective
    from tests.recipes import build, some_data

    plain = build(sb.SquarePartitioner(sides=(2,)))
    assert measure_objective(plain, some_data(), device="cpu", autocast_dtype=None) == {}


def test_measures_are_means_over_all_test_images_and_leave_modes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from ssl_blocks.pretrain import scoring
    from tests.recipes import some_data

    data = some_data()
    tokenizer = sb.PatchTokenizer(image_size=16, patch_size=4)
    torch.manual_seed(0)
    encoder = sb.encoders.PostNormTransformer(grid=4, patch=4, depth=1, num_heads=2, dropout=0.5)
    puzzle = sb.PatchPuzzle(encoder=encoder, tokenizer=tokenizer)
    puzzle.head.eval()
    monkeypatch.setattr(scoring, "MEASURE_BATCH", 3)  # 3, 3 and 2 of the 8 test images
    found = scoring.measure_objective(puzzle, data, device="cpu", autocast_dtype=None)
    assert (puzzle.training, puzzle.head.training) == (True, False)
    puzzle.eval()
    whole = puzzle.measure(to_float(data.test.images, data.mean, data.std))
    assert found == {name: pytest.approx(value.item()) for name, value in whole.items()}
    assert scoring.measure_objective(puzzle, replace(data, test=None), device="cpu", autocast_dtype=None) == {}
