"""Every option is read, and every setting of a protocol has an effect."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import Field

from ssl_blocks import encoders
from ssl_blocks.cli.arguments import list_options
from ssl_blocks.data import ImageSplit, SegmentationData, ShapeImages, load
from ssl_blocks.encoders import export_encoder
from ssl_blocks.engine.settings import StrictModel
from ssl_blocks.evaluate.cli import Wish, configure, read_wish
from ssl_blocks.evaluate.config import config_class
from ssl_blocks.evaluate.run import run as run_wish
from ssl_blocks.evaluation import PROTOCOLS, Extractor, Labelled, Protocol, Score, Subject
from ssl_blocks.evaluation.protocols.fewshot import FewshotFinetune, FewshotSettings
from ssl_blocks.evaluation.protocols.finetune import FinetuneOptions
from tests.evaluate.test_cli import CPU

pytestmark = pytest.mark.process  # takes long

SMALL = (
    "--data.name=digits", "--data.max_train=80", "--data.max_test=20", "--fewshot.shots=4", "--fewshot.finetune=true",
    "--fewshot.seeds=0",
    "--probe.epochs=2", "--probe.warmup_epochs=1", "--attentive.epochs=1",
    "--finetune.epochs=1", "--finetune.warmup_epochs=0",
    "--segment.epochs=1", "--segment.width=4", "--segment.batch_size=32", *CPU,
)  # fmt: skip


# --- every option is read ---------------------------------------------------------------------------------------------


def leaves(model: StrictModel, prefix: str = "") -> Iterator[tuple[StrictModel, str, str]]:
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, StrictModel):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield model, name, prefix + name


def read_fields(wish: Wish, word: str, monkeypatch: pytest.MonkeyPatch) -> tuple[set[str], set[str]]:
    """Paths of all options, and of those that an evaluation reads."""
    config = configure(wish, word)
    paths = {(id(model), name): path for model, name, path in leaves(config)}
    own, seen = StrictModel.__getattribute__, set()

    def spy(self: StrictModel, name: str) -> Any:
        seen.add((id(self), name))
        return own(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(StrictModel, "__getattribute__", spy)
        run_wish(wish, word, config)
    return set(paths.values()), {path for place, path in paths.items() if place in seen}


class LossySettings(StrictModel):
    """Settings of which two are lost."""

    heard: int = Field(1, description="read")
    lost: int = Field(1, description="not read")
    forgotten: int = Field(1, description="not read")


class Lossy(Protocol[LossySettings, Labelled]):
    """Loses settings."""

    name = "lossy"
    Settings = LossySettings

    def score(self, subject: Subject, data: Labelled) -> Score:
        return Score({"heard": self.settings.heard}, "-")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    encoder = encoders.timm_vit(image_size=16, patch_size=4, channels=1, depth=4, embed_dim=16, num_heads=2)
    return export_encoder(encoder, tmp_path_factory.mktemp("own") / "mine", tokenizer=None, mean=(0.4,), std=(0.3,))


def test_every_option_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    every, found = set(), set()
    names = [protocol.name for protocol in PROTOCOLS]
    alone = ("--pixels=false", "--random=false")
    for words in (names, ["probe", "--probe.augment=true", *alone], ["probe", "--probe.solver=logistic", *alone]):
        tasks, options = [w for w in words if w[0] != "-"], [w for w in words if w[0] == "-"]
        wish = read_wish([*tasks, str(folder), *SMALL, f"--output={tmp_path / 'scores.json'}", *options], "evaluate.py")
        paths, seen = read_fields(wish, str(folder), monkeypatch)
        every, found = every | paths, found | seen
    assert every - found == set()
    assert len(every) > 50


def test_options_that_nothing_reads_are_found(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wish = read_wish(["knn", str(folder), *SMALL, f"--output={tmp_path / 'scores.json'}"], "evaluate.py")
    lossy = Wish((Lossy,), (Lossy,), wish.word, wish.options, wish.command)
    paths, seen = read_fields(lossy, str(folder), monkeypatch)
    assert {path for path in paths - seen if path.startswith("lossy.")} == {"lossy.lost", "lossy.forgotten"}


# --- every setting of a protocol has an effect ------------------------------------------------------------------------

# one value beside the small ones below, for each option: it must change the score
OTHERS: dict[str, dict[str, Any]] = {
    "knn": {"k": 1, "temperature": 100.0},
    "probe": {
        "solver": "logistic", "lrs": (9.0, 900.0), "batch_size": 40, "epochs": 4, "warmup_epochs": 0.5,
        "weight_decay": 500.0, "trust_coefficient": 0.1, "momentum": 0.0, "normalize": False, "augment": True,
        "validation": 0.4, "crop_scale": (0.9, 1.0), "cs": (1e-4, 1e-3), "layers": 2, "pooling": "mean",
    },
    "attentive": {
        "heads": 2, "lrs": (9.0,), "epochs": 4, "batch_size": 7, "weight_decay": 50.0, "warmup": 0.9, "validation": 0.4,
    },
    "fewshot": {"shots": 2, "seeds": (5, 6), "finetune": True},
    "finetune": {
        "epochs": 3, "base_lr": 0.1, "batch_size": 8, "accumulate": 2, "warmup_epochs": 0.5, "weight_decay": 5.0,
        "layer_decay": 0.1, "drop_path": 0.9, "magnitude": None, "deviation": 5.0, "crop_scale": (0.9, 1.0),
        "smoothing": 0.5, "mixup": 0.0, "cutmix": 0.0, "fresh_norm": True, "train_fixed": False, "from_random": True,
        "save": "kept", "resume": True, "num_workers": 1,
    },
    "segment": {
        "data": "voc", "num_classes": 3, "freeze": True, "width": 8, "epochs": 3, "batch_size": 2, "lr": 1e-2,
        "weight_decay": 500.0, "warmup": 0.6, "clip": 1e-4, "crop_scale": None,
        "from_random": True, "save": "kept", "resume": True, "num_workers": 1,
    },
}  # fmt: skip
BASES: dict[str, dict[str, Any]] = {
    "probe": {"epochs": 3, "warmup_epochs": 1, "batch_size": 6},
    "attentive": {"epochs": 2, "batch_size": 20, "lrs": (1e-3, 1e-1)},
    "fewshot": {"shots": 5, "seeds": (0, 1)},
    "finetune": {"epochs": 2, "warmup_epochs": 1, "batch_size": 20, "base_lr": 5e-3},
    "segment": {"epochs": 2, "width": 4, "batch_size": 4},
}
BESIDE: dict[tuple[str, str], dict[str, Any]] = {  # what an option has an effect beside
    ("probe", "augment"): {"lrs": (3.0, 30.0)},  # at larger rates all is lost either way
    ("probe", "crop_scale"): {"augment": True, "lrs": (3.0, 30.0)},
    ("probe", "cs"): {"solver": "logistic"},
    ("finetune", "deviation"): {"magnitude": 5},
    ("finetune", "layer_decay"): {"base_lr": 1.0, "epochs": 3},  # the head starts at 0, the encoder a step later
    ("finetune", "train_fixed"): {"base_lr": 1.0, "epochs": 3, "layer_decay": 1.0},
}
# rows and columns of their own, and data, which a run of the command shows
ELSEWHERE = {
    ("fewshot", "finetune"), ("finetune", "from_random"), ("segment", "from_random"), ("segment", "data"),
    ("segment", "num_classes"), ("finetune", "save"), ("finetune", "resume"), ("segment", "save"),
    ("segment", "resume"), ("finetune", "num_workers"), ("segment", "num_workers"),
}  # fmt: skip


def small_subject(depth: int) -> Subject:
    torch.manual_seed(0)
    encoder = encoders.timm_vit(image_size=16, patch_size=4, channels=1, depth=depth, embed_dim=16, num_heads=2)
    return Subject("own", Extractor(encoder, (0.4,), (0.3,)), image_size=(16, 16))


@pytest.fixture(scope="module")
def subject() -> Subject:
    return small_subject(depth=4)


@pytest.fixture(scope="module")
def images() -> Labelled:
    data = load("digits", image_size=16, max_train=100, max_test=100)
    assert isinstance(data.test, ImageSplit)
    return Labelled(data.train, data.test)


Scored = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def scored(subject: Subject, images: Labelled) -> Scored:
    """Values that a protocol finds with settings that differ from small ones; each once."""
    shapes = [ShapeImages(count, size=16, seed=count, channels=1) for count in (8, 6)]
    masks = SegmentationData(*shapes, ("background", "circle", "square", "triangle"))
    few = Labelled(images.train.take(torch.arange(40)), images.test.take(torch.arange(60)))
    data: dict[str, Any] = {"segment": masks, "finetune": few}
    shallow = small_subject(depth=2)
    known: dict[str, dict[str, Any]] = {}

    def score(name: str, changes: dict[str, Any], *, again: bool = False) -> dict[str, Any]:
        key = f"{name} {sorted(changes.items())}"
        if key not in known or again:
            kind = next(protocol for protocol in PROTOCOLS if protocol.name == name)
            protocol = kind(kind.Settings(**(BASES.get(name, {}) | changes)), seed=1)
            known[key] = dict(protocol.score(shallow if name == "finetune" else subject, data.get(name, images)).values)
        return known[key]

    return score


def test_every_setting_is_tried() -> None:
    for protocol in PROTOCOLS:
        assert set(OTHERS[protocol.name]) == set(protocol.Settings.model_fields), protocol.name
    assert len(list_options(config_class(*PROTOCOLS))) > sum(map(len, OTHERS.values()))


@pytest.mark.parametrize(
    ("name", "field"),
    [(name, field) for name, others in OTHERS.items() for field in others if (name, field) not in ELSEWHERE],
)
def test_every_setting_changes_the_score(name: str, field: str, scored: Scored) -> None:
    beside = BESIDE.get((name, field), {})
    assert scored(name, beside) != scored(name, {**beside, field: OTHERS[name][field]})


@pytest.mark.parametrize("name", [protocol.name for protocol in PROTOCOLS])
def test_the_same_settings_find_the_same(name: str, scored: Scored) -> None:
    assert scored(name, {}) == scored(name, {}, again=True)


@pytest.mark.parametrize("name", ["finetune", "segment"])
def test_workers_change_nothing(name: str, scored: Scored) -> None:
    assert scored(name, {"num_workers": 1}) == scored(name, {})


def test_fewshot_fine_tunes_on_so_many_labels(
    subject: Subject, images: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def note(extractor: Extractor, few: Labelled, **options: Any) -> SimpleNamespace:
        asked.append((extractor, len(few.train), few.test is images.test, options))
        return SimpleNamespace(score=SimpleNamespace(accuracy=0.25 * len(asked)))

    monkeypatch.setattr("ssl_blocks.evaluation.fewshot.finetune_encoder", note)
    settings = FinetuneOptions(epochs=3)
    found = FewshotFinetune(settings, few=FewshotSettings(shots=4, seeds=(5, 7))).score(subject, images)
    assert found.values["per_seed"] == (0.25, 0.5)
    assert asked == [(subject.extractor, 40, True, {"seed": seed, "settings": settings}) for seed in (5, 7)]
