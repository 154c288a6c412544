"""An encoder into a repository on the Hugging Face hub: files, a card that says what it is, private unless told."""

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ssl_blocks.deploy.config import PushConfig
from ssl_blocks.encoders.card import CARD, hub_card
from ssl_blocks.evaluation.subject import run_of
from ssl_blocks.files import at_home, read_json

FILES = ("config.json", "model.safetensors")
REPOSITORY = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)


@runtime_checkable
class Api(Protocol):
    """What is asked of ``huggingface_hub.HfApi``, and of whatever stands in for it."""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> Any:
        """Make a repository, unless it is there."""
        ...

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> Any:
        """Commit all files of a folder."""
        ...


@dataclass(frozen=True)
class Pushed:
    """What was, or would be, uploaded.

    Args:
        repository: ``OWNER/NAME``.
        files: names and bytes.
        card: the text of ``README.md``.
        is_private: whether only the owner sees it, where it is new.
        address: of the repository; ``None`` for a dry run.
    """

    repository: str
    files: dict[str, int]
    card: str
    is_private: bool
    address: str | None


def push(
    source: str | Path, repository: str, *, dry_run: bool = False, api: Api | None = None, **options: Any
) -> Pushed:
    """Upload an exported encoder with a model card; a new repository is private unless told.

    Whoever may read it loads it by ``timm.create_model("hf-hub:OWNER/NAME", pretrained=True)``, where the encoder is a
    model of timm, or by `load_encoder` from a folder that it was downloaded into. The token is the one that
    ``hf auth login`` has stored.

    Args:
        source: a run, or the folder of an exported encoder.
        repository: ``OWNER/NAME``.
        dry_run: only say what would be uploaded; nothing is asked of the hub.
        api: by what; ``None`` means ``huggingface_hub.HfApi()``.
        **options: fields of `PushConfig`: ``private``, ``license``, ``datasets``, ``tags`` and ``message``.

    Raises:
        FileNotFoundError: if there is no exported encoder.
        ValueError: if the repository is no ``OWNER/NAME``, or the encoder's folder is damaged.
        OSError: if the hub cannot be reached, or refuses.
    """
    config = PushConfig(**options)
    if not REPOSITORY.fullmatch(repository) or ".." in repository or "--" in repository:
        raise ValueError(f"repository={repository!r} must be OWNER/NAME: letters, digits and . _ -")
    folder, run = _exported(source)
    with tempfile.TemporaryDirectory() as made:
        staged = Path(made)
        for name in FILES:
            shutil.copyfile(folder / name, staged / name)
        card = hub_card(repository, folder, run, license=config.license, datasets=config.datasets, tags=config.tags)
        (staged / CARD).write_text(card)
        files = {path.name: path.stat().st_size for path in sorted(staged.iterdir())}
        address = None if dry_run else _upload(repository, staged, config, api)
    return Pushed(repository, files, card, config.private, address)


def _exported(source: str | Path) -> tuple[Path, Path | None]:
    """The folder of the encoder, and of the run that it comes from."""
    path, run = at_home(source), run_of(str(source))
    folder = path / "encoder" if run == path else path
    for name in FILES:
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"source={str(source)!r} must be a run or an exported encoder, but {name} is not in {folder}"
            )
    if "ssl_blocks" not in read_json(folder / "config.json"):
        raise ValueError(f"source={str(source)!r} must be an export of this library, but its config.json is of another")
    return folder, run


def _upload(repository: str, staged: Path, config: PushConfig, api: Api | None) -> str:
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi()
    try:
        api.create_repo(repository, private=config.private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=str(staged), commit_message=config.message)
    except Exception as error:  # of whichever library it speaks through
        reason = " ".join(str(error).split())
        raise OSError(f"{repository} could not be uploaded: {type(error).__name__}: {reason}") from error
    return f"{getattr(api, 'endpoint', 'https://huggingface.co')}/{repository}"


def run(source: str, repository: str, config: PushConfig, *, dry_run: bool) -> str:
    """The command: what was uploaded, in words."""
    done = push(source, repository, dry_run=dry_run, **dict(config))
    lines = [f"  {name}  {size:,} bytes" for name, size in done.files.items()]
    seen = "private" if done.is_private else "public"
    if done.address is None:
        return "\n".join([f"would upload to {repository} ({seen} where it is new):", *lines, "", done.card])
    return "\n".join([f"uploaded to {done.address} ({seen} where it is new):", *lines])
