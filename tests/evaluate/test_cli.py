"""The command: what it finds out, what it leaves behind, and what it refuses."""

import json
import re
from pathlib import Path

import pytest
import torch

from ssl_blocks import PatchTokenizer, encoders
from ssl_blocks.cli.arguments import list_options
from ssl_blocks.data import load
from ssl_blocks.encoders import export_encoder, untrained
from ssl_blocks.evaluate import main
from ssl_blocks.evaluate.cli import Wish, configure, help_text, read_wish
from ssl_blocks.evaluation import (
    Extractor,
    FinetuneSettings,
    Labelled,
    LinearSettings,
    RawPixels,
    fewshot_probe,
    finetune_encoder,
    knn_accuracy,
    linear_probe,
    logistic_probe,
)

pytestmark = pytest.mark.process  # takes long

DEVICE = ("--device=cpu", "--precision=fp32")
CPU = (*DEVICE, "--pictures=false")  # which take longest, and have tests of their own
HALF = (0.5, 0.5, 0.5)


def results(path: Path) -> list[dict]:
    return json.loads(path.read_text())["evaluations"]


def by_name(entry: dict) -> dict[str, dict]:
    return {row["name"]: row for row in entry["scores"]}


def wished(*arguments: str) -> Wish:
    return read_wish(arguments, "evaluate.py")


def test_scores_are_those_of_the_protocols_called_by_hand(run: Path, capsys: pytest.CaptureFixture) -> None:
    few = ("--probe.epochs=4", "--probe.warmup_epochs=1", "--probe.lrs=1,10,100", "--fewshot.seeds=3,4")
    assert main(["knn", "probe", "fewshot", str(run), *few, *CPU]) == 0
    scores = by_name(results(run / "results.json")[0])
    assert list(scores) == ["raw pixels", "random encoder", "run"]
    data = load("digits", max_train=200, max_test=50)
    known = json.loads((run / "encoder" / "config.json").read_text())["ssl_blocks"]
    statistics = (tuple(known["mean"]), tuple(known["std"]))
    settings = LinearSettings(epochs=4, warmup_epochs=1, lrs=(1.0, 10.0, 100.0))
    assert data.test is not None
    for name, encoder in (
        ("raw pixels", RawPixels(channels=1, size=(8, 8))),
        ("random encoder", untrained(run / "encoder", seed=0)),
        ("run", encoders.load_encoder(run / "encoder")),
    ):
        extract = Extractor(encoder, *statistics)
        arguments = (extract(data.train.images), data.train.labels, extract(data.test.images), data.test.labels)
        assert scores[name]["knn"]["accuracy"] == pytest.approx(knn_accuracy(*arguments))
        probe = linear_probe(*arguments, settings=settings)
        assert scores[name]["probe"]["validation"] == pytest.approx(list(probe.validation))
        assert scores[name]["probe"]["accuracy"] == pytest.approx(probe.accuracy)
        assert scores[name]["fewshot"]["mean"] == pytest.approx(fewshot_probe(*arguments, seeds=(3, 4)).mean)
    # no row could stand for another
    assert len({(row["knn"]["accuracy"], *row["probe"]["validation"]) for row in scores.values()}) == 3
    table = capsys.readouterr().out
    for text in ("raw pixels", "random encoder", f"{scores['run']['knn']['accuracy']:.1%}", "10 labels"):
        assert text in table


def test_the_random_encoder_is_the_one_that_the_run_began_with(run: Path) -> None:
    before = json.loads((run / "results.json").read_text())["scores"]
    assert main(["knn", "fewshot", str(run), *CPU]) == 0
    scores = by_name(results(run / "results.json")[0])
    names = {"raw pixels": "raw pixels", "random encoder": "random encoder", "pretrained encoder": "run"}
    for row in before:
        assert scores[names[row["name"]]]["knn"]["accuracy"] == pytest.approx(row["knn"], abs=0.021), row["name"]
        assert scores[names[row["name"]]]["fewshot"]["mean"] == pytest.approx(row["fewshot"]["mean"], abs=0.03)


def test_entries_are_added_and_nothing_of_the_run_is_lost(run: Path) -> None:
    before = json.loads((run / "results.json").read_text())
    weights = (run / "encoder" / "model.safetensors").read_bytes()
    assert main(["knn", str(run), "--knn.k=5", *CPU]) == 0
    assert main(["fewshot", str(run / "encoder"), "--pixels=false", "--fewshot.shots=2", *CPU]) == 0
    after = json.loads((run / "results.json").read_text())
    assert {name: value for name, value in after.items() if name != "evaluations"} == before
    first, second = after["evaluations"]
    assert first["settings"] == {"seed": 0, "knn": {"k": 5, "temperature": 0.07}}
    assert second["settings"]["fewshot"]["shots"] == 2
    assert [row["name"] for row in second["scores"]] == ["random encoder", "run"]
    assert first["data"] == {"name": "digits", "train": 200, "test": 50}
    assert (run / "encoder" / "model.safetensors").read_bytes() == weights
    assert encoders.load_encoder(run / "encoder") is not None


def test_the_model_card_shows_every_evaluation(run: Path) -> None:
    card = run / "encoder" / "README.md"
    before = card.read_text()
    for k in ("2", "3"):
        assert main(["knn", str(run), f"--knn.k={k}", *CPU]) == 0
    text, scores = card.read_text(), by_name(results(run / "results.json")[1])
    assert "`evaluate.py knn" in text
    assert "`evaluate.py knn" not in before
    assert f"| run | {scores['run']['knn']['accuracy']:.1%} |" in text
    assert text.count("`evaluate.py knn") == 1  # the latest of its kind
    assert before.partition("## Load")[0].strip() in text


def test_finetuning_and_segmentation_run_as_a_user_would_call_them(run: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["--finetune.epochs=2", "--finetune.warmup_epochs=1", "--finetune.batch_size=32"]
    few = ["--fewshot.finetune=true", "--fewshot.shots=4", "--fewshot.seeds=0"]
    assert main(["finetune", "fewshot", str(run), "--finetune.from_random=true", *options, *few, *CPU]) == 0
    scores = by_name(results(run / "results.json")[0])
    assert set(scores["run"]) == {"name", "finetune", "fewshot", "fewshot_finetune"}
    assert set(scores["random encoder"]) == {"name", "finetune", "fewshot", "fewshot_finetune"}
    data = load("digits", max_train=200, max_test=50)
    known = json.loads((run / "encoder" / "config.json").read_text())["ssl_blocks"]
    settings = FinetuneSettings(epochs=2, warmup_epochs=1, batch_size=32)
    assert data.test is not None
    fed = Extractor(encoders.load_encoder(run / "encoder"), tuple(known["mean"]), tuple(known["std"]))
    by_hand = finetune_encoder(fed, Labelled(data.train, data.test), settings=settings)
    assert scores["run"]["finetune"]["losses"] == pytest.approx(list(by_hand.score.losses))
    shown = re.sub(r"[\s┃]+", " ", capsys.readouterr().out)
    assert "fine-tuned" in shown
    assert f"{scores['run']['finetune']['accuracy']:.1%}" in shown


def test_segmentation_needs_no_data_of_the_run(tmp_path: Path) -> None:
    encoder = encoders.timm_vit(image_size=16, patch_size=4, depth=4, embed_dim=16, num_heads=2)
    folder = export_encoder(encoder, tmp_path / "mine", tokenizer=None, mean=HALF, std=HALF)
    output = tmp_path / "out" / "scores.json"
    options = ["--segment.epochs=1", "--segment.width=4", "--segment.batch_size=32", "--segment.from_random=true"]
    assert main(["segment", str(folder), *options, f"--output={output}", *CPU]) == 0
    scores = by_name(results(output)[0])
    assert list(scores) == ["most frequent class", "random encoder", "mine"]
    assert all(0 < row["segment"]["mean_iou"] < 1 for row in scores.values())


def test_a_timm_name_is_evaluated_on_resized_images(tmp_path: Path) -> None:
    output = tmp_path / "scores.json"
    options = ["--data.name=digits", "--data.max_train=100", "--data.max_test=20", "--pretrained=false"]
    arguments = ["knn", "test_vit", *options, f"--output={output}", "--image_size=32", *CPU]
    assert main(arguments) == 0
    entry = results(output)[0]
    assert entry["image_size"] == [32, 32]
    assert [row["name"] for row in entry["scores"]] == ["raw pixels", "test_vit"]  # random weights, once


@pytest.mark.parametrize(
    ("name", "pooling"),
    [
        ("test_vit", "mean of normalised patch tokens"),
        ("test_resnet", "mean of normalised regions"),
        ("test_vit_relpos", "the model's own"),
    ],
)
def test_any_family_of_timm_has_features(name: str, pooling: str, tmp_path: Path) -> None:
    output = tmp_path / "scores.json"
    options = ["--data.name=digits", "--data.max_train=40", "--data.max_test=10", "--pretrained=false"]
    assert main(["knn", name, *options, "--pixels=false", f"--output={output}", *CPU]) == 0
    assert results(output)[0]["features"] == pooling


def test_a_function_in_user_code_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_models.py").write_text(
        "import ssl_blocks as sb\n"
        "def small():\n"
        "    return sb.encoders.timm_vit(image_size=8, patch_size=4, channels=1, depth=1, embed_dim=8, num_heads=2)\n"
        "def plain():\n"
        "    return small().module\n"
        "def wrong():\n"
        "    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    options = ["--data.name=digits", "--data.max_train=40", "--data.max_test=10", "--output=scores.json", *CPU]
    assert main(["knn", "own_models:small", *options]) == 0
    assert main(["knn", "own_models:plain", *options]) == 0
    assert [len(entry["scores"]) for entry in results(tmp_path / "scores.json")] == [2, 2]


def test_the_patch_puzzles_encoder_is_fed_as_in_pretraining(tmp_path: Path) -> None:
    tokenizer = PatchTokenizer.from_grid(image_size=8, grid=2, channels=1, crop=1)
    torch.manual_seed(0)
    encoder = encoders.PostNormTransformer(grid=2, patch=3, channels=1, depth=1, num_heads=3)
    folder = export_encoder(encoder, tmp_path / "apl", tokenizer=tokenizer, mean=(0.3,), std=(0.4,))
    output = tmp_path / "scores.json"
    options = ["--data.name=digits", "--data.max_train=100", "--data.max_test=50", f"--output={output}"]
    assert main(["knn", str(folder), *options, *CPU]) == 0
    data = load("digits", max_train=100, max_test=50)
    assert data.test is not None
    extract = Extractor(encoder, (0.3,), (0.4,), tokenizer)
    train, test = extract(data.train.images), extract(data.test.images)
    expected = knn_accuracy(train, data.train.labels, test, data.test.labels)
    assert by_name(results(output)[0])["apl"]["knn"]["accuracy"] == pytest.approx(expected)


def test_the_logistic_probe_and_augmented_images_are_options(run: Path) -> None:
    assert main(["probe", str(run), "--probe.solver=logistic", "--probe.cs=0.1,1", "--pixels=false", *CPU]) == 0
    assert main(["probe", str(run), "--probe.augment=true", "--probe.epochs=2", "--probe.warmup_epochs=1", *CPU]) == 0
    first, second = results(run / "results.json")
    data = load("digits", max_train=200, max_test=50)
    known = json.loads((run / "encoder" / "config.json").read_text())["ssl_blocks"]
    encoder = encoders.load_encoder(run / "encoder")
    assert data.test is not None
    extract = Extractor(encoder, tuple(known["mean"]), tuple(known["std"]))
    train, test = extract(data.train.images), extract(data.test.images)
    by_hand = logistic_probe(train, data.train.labels, test, data.test.labels, cs=(0.1, 1.0))
    assert by_name(first)["run"]["probe"]["accuracy"] == pytest.approx(by_hand.accuracy)
    assert by_name(second)["run"]["probe"]["candidates"] == pytest.approx(list(LinearSettings().rates(200)))
    assert by_name(first)["run"]["probe"] != by_name(second)["run"]["probe"]


def test_a_run_tells_its_data_and_seed(run: Path) -> None:
    known = configure(wished("knn"), str(run))
    assert (known.data.name, known.data.max_train, known.data.max_test, known.seed) == ("digits", 200, 50, 0)
    other = configure(wished("knn", "--data.name=cifar10", "--seed=3"), str(run / "encoder"))
    assert (other.data.name, other.data.max_train, other.seed) == ("cifar10", None, 3)
    wish = wished("knn")
    assert configure(wish, "vit_tiny_patch16_224").model_dump() == wish.config_class().model_dump()
    (run / "results.json").write_text('{"value_range": [0, 4095]}')  # as the run measured it
    assert configure(wished("knn"), str(run)).data.value_range == (0, 4095)
    assert configure(wished("knn", "--data.value_range=0,9"), str(run)).data.value_range == (0, 9)
    assert configure(wished("knn", "--data.name=cifar10"), str(run)).data.value_range is None


def test_help_names_every_option_and_protocol() -> None:
    wish = wished("knn", "-h")
    assert wish.options == {"help": None}
    text = help_text("evaluate.py", wish.config_class, width=100)
    for option in list_options(wish.config_class):
        assert f"--{option.path} " in text
        assert option.field.description, option.path
    assert max(map(len, text.splitlines())) <= 100
    assert "  fewshot                     linear probe on few labels per class" in text


def test_the_entry_holds_what_the_numbers_were_made_with(run: Path) -> None:
    assert main(["knn", str(run), *CPU]) == 0
    assert main(["knn", str(run), *CPU], program="ssl-blocks evaluate") == 0
    entry, other = results(run / "results.json")
    assert set(entry) >= {"date", "command", "encoder", "features", "data", "settings", "versions", "seconds"}
    assert entry["command"].startswith("evaluate.py knn ")
    assert other["command"].startswith("ssl-blocks evaluate knn ")


def test_processes_share_the_images_and_find_what_one_finds(divided: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.json", divided / "command" / "scores.json"
    assert main(["knn", str(divided / "training" / "blobs"), f"--output={one}", *CPU]) == 0
    found = [
        {row["name"]: row["knn"]["accuracy"] for row in entry["scores"]} for entry in (results(one)[0], results(two)[0])
    ]
    assert found[0] == pytest.approx(found[1])
    assert len(results(two)) == 1
    said = [(divided / "command" / f"{rank}.txt").read_text() for rank in range(2)]
    assert [text.count("raw pixels") for text in said] == [1, 0]  # one process speaks
