"""RandSAC's recipe without a decoder: the two-stream row of the paper's ablation."""

from pathlib import Path

import ssl_blocks as sb
from ssl_blocks.cli import load_config
from ssl_blocks.pretrain import Run, figures
from ssl_blocks.recipes.randsac import RECIPE, assemble
from tests.pretrain.small import arguments
from tests.recipes import some_data


def test_a_run_without_a_decoder_ends_with_an_encoder_and_pictures(tmp_path: Path) -> None:
    options = arguments(
        tmp_path,
        "--two_stream=true",
        "--trainer.epochs=1",
        "--segments.kind=blob",
        "--segments.counts=4",
        "--trainer.figures=true",
    )
    options = [option for option in options if not option.startswith("--decoder.")]  # there is none
    run = Run.prepare(load_config(RECIPE, options), assemble)
    objective = run.module.objective
    assert isinstance(objective, sb.SegmentPrediction)
    assert {name.partition(".")[0] for name, _ in objective.named_parameters()} == {"encoder", "reader", "head"}
    folder = run.fit()
    assert (folder / "encoder" / "model.safetensors").is_file()
    for name in ("segments.png", "steps.png", "reconstructions.png", "reading_order.gif"):
        assert (folder / "figures" / name).is_file()


def test_pictures_are_those_of_an_autoregression(tmp_path: Path) -> None:
    tokenizer = sb.PatchTokenizer(image_size=16, patch_size=4)
    objective = sb.SegmentPrediction(
        encoder=sb.encoders.timm_vit(image_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2, class_token=True),
        reader=sb.QueryReader(16),
        tokenizer=tokenizer,
        partitioner=sb.TokenPartitioner(),
        target=sb.PixelTarget(tokenizer),
        predict_first=True,
    )
    files = figures.write_figures(objective, some_data(), tmp_path)
    assert [file.name for file in files] == ["reconstructions.png", "steps.png", "segments.png", "reading_order.gif"]
