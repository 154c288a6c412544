"""The model card of an exported encoder: what it is, where it comes from, what it scores, how to load it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from ssl_blocks.files import atomically, read_json
from ssl_blocks.text import code, plain, quoted
from ssl_blocks.yaml_files import read_mapping

CARD = "README.md"


def write_card(run: Path) -> Path:
    """Write ``encoder/README.md`` of a finished run out of what the run wrote: anew whenever scores are added."""
    folder = run / "encoder"
    text = _card(folder, read_json(folder / "config.json"), run, read_json(run / "results.json"))
    with atomically(folder / CARD) as temporary:
        temporary.write_text(text)
    return folder / CARD


def plain_card(folder: Path, exported: Mapping[str, Any]) -> str:
    """The card of an encoder that comes from no run: where it will lie, and its ``config.json``."""
    return _card(folder, exported, None, {})


def hub_card(
    repository: str,
    folder: Path,
    run: Path | None,
    *,
    license: str | None = None,
    datasets: Sequence[str] = (),
    tags: Sequence[str] = (),
) -> str:
    """The card of an encoder in a repository on the hub: its files lie in ``folder``, and come from a run if any."""
    more: dict[str, Any] = {"datasets": list(datasets) or None, "pipeline_tag": "image-feature-extraction"}
    exported = read_json(folder / "config.json")
    results = read_json(run / "results.json") if run is not None and (run / "results.json").is_file() else {}
    return _card(folder, exported, run, results, license=license, tags=tags, repository=repository, **more)


def _card(
    folder: Path,
    exported: Mapping[str, Any],
    run: Path | None,
    results: Mapping[str, Any],
    *,
    license: str | None = None,
    tags: Sequence[str] = (),
    repository: str | None = None,
    **more: Any,
) -> str:
    config = None if run is None else read_mapping(run / "config.yaml")
    notes: dict[str, Any] = exported.get("ssl_blocks", {})
    license = license or (notes.get("origin") or {}).get("license")
    of_timm, own = is_of_timm(exported), ["image-feature-extraction", "self-supervised"]
    library = "timm" if of_timm else "ssl_blocks"
    front = ModelCardData(library_name=library, tags=[*own, *tags], license=license, **more)
    lines = ["---", front.to_yaml(), "---", ""]
    title = repository or (config["name"] if config else folder.name)
    lines += [f"# {plain(title)}", "", *(_origin(config, results) if config else ()), *_encoder(notes, exported)]
    if scores := list(_scores(results)):
        lines += ["## Scores", "", *scores]
    return "\n".join([*lines, _loading(folder, notes, of_timm=of_timm, repository=repository)])


def is_of_timm(exported: Mapping[str, Any]) -> bool:
    """Whether plain timm loads an export, by its ``config.json``."""
    return "pretrained_cfg" in exported


def _origin(config: Mapping[str, Any], results: Mapping[str, Any]) -> Iterator[str]:
    recipe, data, trainer = results.get("recipe", {}), config["data"], config["trainer"]
    images = recipe.get("train_images")
    kind, version = code(recipe.get("name", "a recipe")), plain(recipe.get("version", ""))
    what = f"Pretrained with {kind} of ssl_blocks {version}".rstrip()
    objective = f", objective {code(recipe['objective'])}" if "objective" in recipe else ""
    yield from [f"{what}{objective}.", ""]
    yield from ["| | |", "|---|---|"]
    count = f", {images:,} training images" if images else ""
    yield f"| data | {code(data['name'])}{count} |"
    yield f"| epochs | {trainer['epochs']} |"
    optimizer = config["optimizer"]
    yield f"| batch, base rate | {optimizer['batch_size']}, {optimizer['base_lr']:g} |"
    yield f"| seed | {config['seed']} |"
    if results.get("seconds") is not None:
        yield f"| training time | {results['seconds']:.0f} s |"
    yield from ["", "All settings are in the run's `config.yaml`, all numbers in its `results.json`.", ""]


def _encoder(notes: Mapping[str, Any], exported: Mapping[str, Any]) -> Iterator[str]:
    yield from ["## Encoder", "", "| | |", "|---|---|"]
    architecture = exported.get("architecture") or exported.get("model_type") or "unknown"
    yield f"| architecture | {code(architecture)}, adapter {code(notes.get('encoder', 'unknown'))} |"
    if origin := notes.get("origin"):
        terms = f" (license {plain(origin['license'])})" if origin.get("license") else ""
        yield f"| began with | the weights of {code(origin['name'])}{terms} |"
    grid, patch, crop = notes.get("grid"), notes.get("patch"), notes.get("crop")
    if grid and patch:
        cut = f", cut out of cells with {crop} pixels left out" if crop else ""
        yield f"| patches | {' x '.join(map(str, grid))} of {' x '.join(map(str, patch))} pixels{cut} |"
    if "mean" in notes:
        yield f"| input | {notes['channels']} channels; mean {_numbers(notes['mean'])}, std {_numbers(notes['std'])} |"
    if notes.get("value_range"):
        low, high = notes["value_range"]
        yield f"| images of more than 8 bits | {low:g} is black (0), {high:g} is white (1) |"
    yield f"| features | {plain(notes.get('pooling', 'unknown'))} |"
    yield ""


def _scores(results: Mapping[str, Any]) -> Iterator[str]:
    """The run's own scores, and the latest evaluation by each protocol and on each data."""
    own: Sequence[Mapping[str, Any]] = results.get("scores", [])
    if own:
        images = "{num_test:,} test images by {num_train:,} training images".format(**own[0])
        yield from [f"At the end of the run, on {images} of its data:", ""]
        yield f"| features | linear probe, {own[0]['shots']} labels a class | kNN |"
        yield "|---|---|---|"
        for row in own:
            yield f"| {plain(row['name'])} | {_spread(row['fewshot'])} | {row['knn']:.1%} |"
        yield ""
    latest: dict[tuple[str, ...], Mapping[str, Any]] = {}
    for entry in results.get("evaluations", []):
        data = entry["data"] or {"name": ""}
        latest[(data["name"], *sorted(entry["settings"]))] = entry
    for entry in latest.values():
        yield from _evaluation(entry)


def _evaluation(entry: Mapping[str, Any]) -> Iterator[str]:
    columns = list(dict.fromkeys(name for row in entry["scores"] for name in row if name != "name"))
    data = entry["data"]
    images = (
        "" if data is None else f" on {code(data['name'])} ({data['train']:,} training, {data['test']:,} test images)"
    )
    yield f"{code(entry['command'])}{images}, {entry['date']}:"
    yield ""
    yield f"| features | {' | '.join(plain(name.replace('_', ' ')) for name in columns)} |"
    yield "|---" * (1 + len(columns)) + "|"
    for row in entry["scores"]:
        shown = [plain(row[name]["shown"]) if name in row else "-" for name in columns]
        yield f"| {plain(row['name'])} | {' | '.join(shown)} |"
    yield ""


def _spread(score: Mapping[str, Any] | None) -> str:
    return "-" if score is None else f"{score['mean']:.1%} ± {score['std']:.1%}"


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _loading(folder: Path, notes: Mapping[str, Any], *, of_timm: bool, repository: str | None) -> str:
    name = f"local-dir:{folder.as_posix()}" if repository is None else f"hf-hub:{repository}"
    place = quoted(folder.as_posix()) if repository is None else f"snapshot_download({quoted(repository)})"
    download = "" if repository is None else "from huggingface_hub import snapshot_download\n"
    what = "patches [B, N, C, p, q]" if notes.get("crop") else "images [B, C, H, W]"
    by_timm = f"""```python
import timm

model = timm.create_model({quoted(name)}, pretrained=True).eval()
features = model(images)  # normalised images [B, C, H, W] -> [B, D]
```

or, as an encoder for objectives and evaluation:

"""
    return f"""## Load

{by_timm if of_timm and not notes.get("crop") else ""}```python
{download}from ssl_blocks.encoders import load_encoder

encoder = load_encoder({place})
features = encoder.features(images)  # normalised {what} -> [B, D]
```
"""
