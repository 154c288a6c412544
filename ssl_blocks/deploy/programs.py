"""A trained encoder or model for elsewhere: ONNX, torch.export, timm, safetensors; each is read back and compared."""

import io
import json
import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_blocks.deploy.cli import check_output
from ssl_blocks.deploy.config import ExportConfig, Format
from ssl_blocks.deploy.predictions import load_model, model_subject
from ssl_blocks.deploy.state import is_known, load_objective
from ssl_blocks.encoders import export_encoder
from ssl_blocks.encoders.card import is_of_timm
from ssl_blocks.evaluation.saved import NOTES
from ssl_blocks.evaluation.subject import Subject, find_subject, run_of
from ssl_blocks.files import at_home, atomically, read_json
from ssl_blocks.modes import modes_kept
from ssl_blocks.parts.tokenize import Tokenizer
from ssl_blocks.pretrain.state import write_state
from ssl_blocks.program import VERSION
from ssl_blocks.randomness import seeded_generator

SUFFIX = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors"}
MOST_ONNX_BYTES = 2**31 - 2**26  # one file of protocol buffers holds 2 GiB
TRIED = (2, 3)  # images at a time
TRACED = 7  # images that a program is traced with: a number that nothing else has


@dataclass(frozen=True)
class Exported:
    """What was written, and how it was tried.

    Args:
        output: file or folder.
        difference: largest difference from the encoder on images of noise, in one of its features; ``None`` where
            there is nothing to run.
        notes: what whoever runs it has to know: its input and output.
        remark: what is special, in words; empty where nothing is.
    """

    output: Path
    difference: float | None
    notes: Mapping[str, Any]
    remark: str = ""


class Program(nn.Module):
    """An encoder from images to features as one module, normalisation and cutting included.

    Args:
        subject: whose features they are.
        normalize: whether images come in 0..1; else they are normalised already.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, subject: Subject, *, normalize: bool) -> None:
        super().__init__()
        own = subject.extractor
        self.module = own.encoder.module
        self._encoder, self._tokenizer = (own.encoder,), (own.tokenizer,)  # its module is registered above
        self.normalize = normalize
        for name, values in (("mean", own.mean), ("std", own.std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Tensor:
        """Features ``[B, D]``, or what the model returns."""
        x = (images - self.mean) / self.std if self.normalize else images
        tokenizer: Tokenizer | None = self._tokenizer[0]
        return self._encoder[0].features(x if tokenizer is None else tokenizer(x))


def export(source: str | Path, output: str | Path, *, format: Format, **options: Any) -> Exported:
    """Write a trained encoder or model for elsewhere, read it back, and compare it on two and on three images.

    Args:
        source: as `embed` takes an encoder, or as `predict` takes a model; for ``state`` a run.
        output: where to: ``.onnx``, ``.pt2``, ``.safetensors``, or a folder for ``timm`` and ``state``.
        format: ``"onnx"`` (any batch size, by ONNX Runtime), ``"torch"`` (a program of `torch.export`, any batch size),
            ``"safetensors"`` (the model's weights by their names), ``"timm"`` (a folder for ``local-dir:``) or
            ``"state"`` (the whole objective, see `write_state`).
        **options: fields of `ExportConfig`: ``normalize``, ``image_size``, ``tolerance`` and ``overwrite``.

    Raises:
        FileExistsError: if the output is there, and ``overwrite`` is ``False``.
        FileNotFoundError: if the source is not there.
        ValueError: if an option is wrong, the encoder cannot be written so, or what was written computes others.
        ImportError: if onnx, onnxscript or onnxruntime is missing.

    Examples:
        >>> import tempfile
        >>> from ssl_blocks.encoders import timm_vit
        >>> folder, half = Path(tempfile.mkdtemp()), (0.5,) * 3
        >>> vit = timm_vit(image_size=8, patch_size=4, depth=1, embed_dim=8, num_heads=2)
        >>> _ = export_encoder(vit, folder / "encoder", tokenizer=None, mean=half, std=half)
        >>> done = export(folder / "encoder", folder / "encoder.pt2", format="torch")
        >>> torch.export.load(done.output).module()(torch.rand(5, 3, 8, 8)).shape
        torch.Size([5, 8])
    """
    config = ExportConfig(output=Path(output), format=format, **options)
    suffix = SUFFIX.get(format)
    path = check_output(config.output, overwrite=config.overwrite, suffixes=(suffix,) if suffix else ())
    if format == "state":
        return _export_state(source, path)
    subject, is_model, classes = _find(source, config)
    normalize = config.normalize and format in ("onnx", "torch")
    notes = _notes(subject, normalize=normalize, classes=classes, is_model=is_model)
    if format == "timm":
        return _export_timm(subject, path, notes, is_model, config.tolerance)
    if format == "safetensors":
        return _export_weights(subject.extractor.encoder.module, path, notes)
    return _export_program(subject, path, notes, config)


def _find(source: str | Path, config: ExportConfig) -> tuple[Subject, bool, tuple[str, ...]]:
    """What is exported, whether it is a trained model, and the names of its classes."""
    folder = at_home(source)
    if not (folder / NOTES).is_file():
        return find_subject(str(source), image_size=config.image_size), False, ()
    if config.image_size is not None:
        raise ValueError(f"image_size={config.image_size} must be left out for a trained model, which has its own")
    loaded = load_model(folder)
    subject = model_subject(folder, loaded)
    subject.extractor.encoder.features = loaded.model.forward  # type: ignore[method-assign]  # logits of pixels, too
    return subject, True, loaded.class_names


def _notes(subject: Subject, *, normalize: bool, classes: tuple[str, ...], is_model: bool) -> dict[str, Any]:
    own = subject.extractor
    return {
        "input": "images in 0..1 [B, C, H, W]" if normalize else "normalised images [B, C, H, W]",
        "output": "logits" if is_model else "features",
        "normalize": normalize,
        "mean": list(own.mean),
        "std": list(own.std),
        "value_range": None if subject.value_range is None else list(subject.value_range),
        "channels": len(own.mean),
        "image_size": None if subject.image_size is None else list(subject.image_size),
        "features": None if is_model else subject.pooling,
        "dim": own.encoder.dim,
        "classes": list(classes),
        "version": VERSION,
    }


def _export_program(subject: Subject, path: Path, notes: dict[str, Any], config: ExportConfig) -> Exported:
    size = subject.image_size
    if size is None:
        raise ValueError(f"image_size is required: {subject.name} takes images of any size, a program those of one")
    program = Program(subject, normalize=config.normalize)
    generator = seeded_generator("cpu", 0)
    noise = torch.rand(TRACED, notes["channels"], size[0], size[1], generator=generator)
    images = noise if config.normalize else (noise - program.mean) / program.std
    with modes_kept(program, training=False), torch.no_grad():
        traced = _trace(program, images)
        write = _write_onnx if config.format == "onnx" else _write_torch
        with atomically(path) as temporary:
            run = write(traced, temporary, notes)
            difference = _compare(run, program, images, config.tolerance)
    return Exported(path, difference, notes)


def _trace(program: Program, images: Tensor) -> "torch.export.ExportedProgram":
    from torch.export import Dim, export as trace  # slow to import

    try:
        return trace(program, (images,), dynamic_shapes=({0: Dim("batch")},))
    except (RuntimeError, ValueError, TypeError, AssertionError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"this encoder cannot be traced by torch.export: {type(error).__name__}: {reason}") from error


Runs = Callable[[Tensor], Tensor]


def _write_torch(traced: "torch.export.ExportedProgram", path: Path, notes: Mapping[str, Any]) -> Runs:
    buffer = io.BytesIO()
    torch.export.save(traced, buffer, extra_files={"ssl_blocks.json": json.dumps(notes)})
    path.write_bytes(buffer.getvalue())
    buffer.seek(0)
    with warnings.catch_warnings():  # torch 2.11 reads from what cannot be written to, and warns of itself
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        again: Runs = torch.export.load(buffer).module()
    return again


def _write_onnx(traced: "torch.export.ExportedProgram", path: Path, notes: Mapping[str, Any]) -> Runs:
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"--format onnx needs {error.name}: pip install 'ssl_blocks[onnx]'") from None
    weights = sum(value.nbytes for value in traced.state_dict.values())
    if weights > MOST_ONNX_BYTES:
        raise ValueError(f"weights of {weights / 2**30:.1f} GiB are more than one ONNX file holds (2 GiB): take torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        made = torch.onnx.export(
            traced, dynamo=True, input_names=["images"], output_names=[str(notes["output"])], verbose=False
        )
    assert made is not None
    made.model.metadata_props.update({name: json.dumps(value) for name, value in notes.items()})
    made.save(path, external_data=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _compare(run: Runs, program: Runs, images: Tensor, tolerance: float) -> float:
    """Largest difference on some images and on more of them; ``ValueError`` if it is too large."""
    largest = 0.0
    for count in TRIED:
        wanted, found = program(images[:count]), run(images[:count])
        scale = float(wanted.abs().max())
        difference = float((wanted - found).abs().max()) if wanted.shape == found.shape else float("inf")
        if not difference <= tolerance * scale:
            raise ValueError(
                f"what was written differs by {difference:.2g} from the encoder, whose largest feature is {scale:.2g}: "
                f"more than tolerance={tolerance:g} of it; nothing was kept"
            )
        largest = max(largest, difference)
    return largest


def _export_weights(module: nn.Module, path: Path, notes: Mapping[str, Any]) -> Exported:
    from safetensors.torch import load_file, save_file

    state = {n: v.detach().cpu().clone(memory_format=torch.contiguous_format) for n, v in module.state_dict().items()}
    with atomically(path) as temporary:
        temporary.touch()  # by which the file gets the permissions that others have
        mode = temporary.stat().st_mode
        save_file(state, temporary, metadata={"format": "pt", "ssl_blocks": json.dumps(notes)})
        temporary.chmod(mode)
        again = load_file(temporary)
        if not all(torch.equal(value, again[name]) for name, value in state.items()):
            raise ValueError("what was written is not what was read back; nothing was kept")
    return Exported(path, 0.0, notes)


def _export_timm(subject: Subject, path: Path, notes: Mapping[str, Any], is_model: bool, tolerance: float) -> Exported:
    import timm

    if is_model:
        raise ValueError("format='timm' is for encoders: export a trained model as onnx or torch")
    own = subject.extractor
    statistics: dict[str, Any] = {"mean": own.mean, "std": own.std, "value_range": subject.value_range}
    folder = export_encoder(own.encoder, path, tokenizer=own.tokenizer, **statistics)
    if not is_of_timm(read_json(folder / "config.json")):
        raise ValueError(f"format='timm' is for models of timm, and {type(own.encoder).__name__} holds none")
    size = subject.image_size
    if own.tokenizer is not None or size is None:
        return Exported(folder, None, notes, "timm's model gets what its patches were cut from: see the card")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.rand(max(TRIED), len(own.mean), size[0], size[1], generator=seeded_generator("cpu", 0))
    with modes_kept(own.encoder.module, training=False), torch.no_grad():
        wanted, found = own.encoder.features(images), model(images)
    same = wanted.shape == found.shape and torch.allclose(wanted, found, atol=tolerance * float(wanted.abs().max()))
    difference = float((wanted - found).abs().max()) if wanted.shape == found.shape else None
    return Exported(folder, difference, notes, "" if same else "timm's model pools in its own way: other features")


def _export_state(source: str | Path, path: Path) -> Exported:
    run = run_of(str(source))
    if run is None:
        raise FileNotFoundError(f"source={str(source)!r} must be a run (a folder with config.yaml) for format='state'")
    folder = write_state(run, path)
    if is_known(folder):
        load_objective(folder)
    return Exported(folder, 0.0, read_json(folder / "state.json"))


def run(source: str, config: ExportConfig) -> str:
    """The command: what was written, in words."""
    done = export(source, **dict(config))
    tried = "" if done.difference is None else f"; read back and compared, largest difference {done.difference:.1g}"
    lines = [f"note: {done.remark}"] if done.remark else []
    if "input" in done.notes:
        lines.append(f"takes {done.notes['input']}, gives {done.notes['output']}")
    return "\n".join([*lines, f"wrote {done.output}{tried}"])
