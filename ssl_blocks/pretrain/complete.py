"""What a trained run holds at its end, and how it is told whether all of it is there and whole."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ssl_blocks.encoders.card import CARD
from ssl_blocks.evaluation import Scores
from ssl_blocks.evaluation.fewshot import ProbeScore
from ssl_blocks.files import alone_with, atomically, read_json

RESULTS, CONFIG = "results.json", "config.yaml"


def missing_parts(folder: Path, *, figures: bool) -> list[str]:
    """Which of config, results, encoder, card and figures a trained run lacks, or holds damaged."""
    results = read_results(folder)
    found = [] if (folder / CONFIG).is_file() else ["config"]
    if results is None:
        return [*found, "results"]
    digests: Mapping[str, str] = results.get("files", {})
    damaged = [name for name, digest in digests.items() if _digest(folder / name) != digest]
    for kind in ("encoder", "figures"):
        mine = [name for name in damaged if name.startswith(f"{kind}/")]
        wanted = kind == "encoder" or figures
        unknown = not digests if kind == "encoder" else "figures" not in results.get("made", ())
        if wanted and (mine or unknown):
            found.append(kind)
    card = folder / "encoder" / CARD
    return found if card.is_file() and card.stat().st_size else [*found, "card"]


def read_results(folder: Path) -> dict[str, Any] | None:
    """The results of a run; ``None`` where there are none that can be read."""
    try:
        results = read_json(folder / RESULTS)
    except (OSError, ValueError):
        return None
    return results if isinstance(results.get("scores"), list) and "recipe" in results else None


def write_results(folder: Path, results: Mapping[str, Any]) -> None:
    """Write the results of a run; evaluations that are there stay, and what cannot be read is moved aside."""
    path = folder / RESULTS
    with alone_with(path):
        before = read_results(folder)
        if before is None and path.is_file():
            path.replace(path.with_suffix(".damaged"))
        kept = {"evaluations": before["evaluations"]} if before and "evaluations" in before else {}
        with atomically(path) as temporary:
            temporary.write_text(json.dumps({**results, **kept}, indent=2) + "\n")


def clear_damaged(encoder: Path) -> None:
    """Remove what is left of a run's own encoder where it is none any more, and could not be replaced as one."""
    try:
        read_json(encoder / "config.json")
    except (OSError, ValueError):
        for path in (encoder / name for name in ("config.json", "model.safetensors", CARD)):
            if path.is_file() or path.is_symlink():
                path.unlink()


def seal(folder: Path, figures: Iterable[Path] | None) -> None:
    """Note checksums of the encoder's files and of pictures (``None``: none were asked for): the run is complete."""
    encoder = [folder / "encoder" / name for name in ("config.json", "model.safetensors")]
    files = {path.relative_to(folder).as_posix(): _digest(path) for path in [*encoder, *(figures or ())]}
    made = {"made": ["encoder", *([] if figures is None else ["figures"])]}
    write_results(folder, {**(read_results(folder) or {}), "files": files, **made})


def sealed_pictures(folder: Path) -> list[Path]:
    """The pictures whose checksums are in the results of a run."""
    return [folder / name for name in (read_results(folder) or {})["files"] if name.startswith("figures/")]


def stored_scores(folder: Path) -> list[Scores]:
    """The scores in the results of a run."""
    rows = (read_results(folder) or {})["scores"]
    probes = [
        row["fewshot"] and ProbeScore(**row["fewshot"] | {"per_seed": tuple(row["fewshot"]["per_seed"])})
        for row in rows
    ]
    return [Scores(**row | {"fewshot": probe}) for row, probe in zip(rows, probes, strict=True)]


def _digest(path: Path) -> str | None:
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    except OSError:
        return None
