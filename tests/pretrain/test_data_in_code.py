"""A run takes its data in code, by index and as a stream: it ends in the same bits however often it was interrupted."""

import io
import os
import re
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_blocks.data import ImageData, StreamImages, load
from ssl_blocks.engine.errors import RunStopped
from ssl_blocks.pretrain import Run, describe
from ssl_blocks.recipes.randsac import assemble
from tests.pretrain.small import acting, config, differences, final

PIXELS = np.random.default_rng(0).integers(0, 256, (44, 8, 8), dtype=np.uint8)
OPTIONS = (
    *("--trainer.epochs=2", "--optimizer.batch_size=11", "--data.max_train=None", "--data.max_test=None"),
    *("--data.image_size=8", "--data.channels=1", "--data.workers=1", "--trainer.knn_every=None"),
)
STREAMED = (*OPTIONS, "--data.storage=stream")


def grey(pixels: np.ndarray) -> Iterator[Image.Image]:
    return (Image.fromarray(one) for one in pixels)


def stream(pixels: np.ndarray = PIXELS) -> StreamImages:
    return StreamImages(lambda: grey(pixels), count=len(pixels))


def tarred(folder: Path) -> str:
    with tarfile.open(folder / "train-0.tar", "w") as tar:
        for i, image in enumerate(grey(PIXELS)):
            image.save(content := io.BytesIO(), "png")
            member = tarfile.TarInfo(f"{i:03}.png")
            member.size = len(content.getvalue())
            tar.addfile(member, io.BytesIO(content.getvalue()))
    return f"shards:{folder}/train-{{0..0}}.tar"


@pytest.mark.parametrize("kind", ["stream", "shards"])
def test_killed_in_mid_epoch_a_run_goes_on_to_the_same_bits(kind: str, tmp_path: Path) -> None:
    data: Any = stream() if kind == "stream" else tarred(tmp_path)
    ends = []
    for name, at_step in (("whole", None), ("parts", 6)):  # of 8, 4 an epoch
        wish = config(tmp_path / name, *STREAMED, f"--data.workers={int(name == 'parts')}")
        if at_step is not None:
            build = acting(lambda _: os.kill(os.getpid(), signal.SIGTERM), at_step)
            with pytest.raises(RunStopped, match=f"step {at_step}"):
                Run.prepare(wish, build, data=data).fit()
        ends.append(final(Run.prepare(wish, assemble, data=data, resume=True).fit()))
    assert ends[0]["global_step"] == 8
    assert differences(*ends) == []


@pytest.mark.parametrize(
    "data",
    [
        PIXELS,
        list(grey(PIXELS)),
        stream(),
        load(PIXELS, image_size=8, channels=1),
        (PIXELS, PIXELS[:4]),
    ],
)
def test_all_that_load_takes_is_the_same_data(data: Any, tmp_path: Path) -> None:
    run = Run.prepare(config(tmp_path, *OPTIONS), assemble, data=data)
    assert isinstance(run.data, ImageData)
    assert torch.equal(run.data.train.read(torch.arange(44)), torch.from_numpy(PIXELS)[:, None])
    assert run.config.data.name == "in-code"


def test_a_dry_run_counts_it(tmp_path: Path) -> None:
    told = describe(config(tmp_path, *OPTIONS), assemble, data=PIXELS)
    assert "images: 1x8x8" in told
    assert re.search(r"training images +44\n +steps per epoch +4\n", told)


def test_other_data_is_refused_when_a_run_goes_on(tmp_path: Path) -> None:
    wish = config(tmp_path, *OPTIONS)
    with pytest.raises(RunStopped):
        Run.prepare(wish, acting(lambda _: os.kill(os.getpid(), signal.SIGTERM), 2), data=PIXELS).fit()
    assert Run.prepare(wish, assemble, data=list(grey(PIXELS)), resume=True).loop.resumed_step == 2
    with pytest.raises(ValueError, match=r"but now their fingerprint='\w{16}' \(the run has '\w{16}'\)$"):
        Run.prepare(wish, assemble, data=PIXELS[::-1].copy(), resume=True)  # mean and deviation are the same
    with pytest.raises(ValueError, match=r"data.name='digits' \(the run has 'in-code'\) differs"):
        Run.prepare(wish, assemble, resume=True)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    loaded = load(PIXELS)
    with pytest.raises(ValueError, match="data: loaded images of 1x8x8 must be 1x16x8, as image_size and channels are"):
        Run.prepare(config(tmp_path, *OPTIONS, "--data.image_size=16,8"), assemble, data=loaded)
    with pytest.raises(TypeError, match="data: data of type int must be a Source"):
        Run.prepare(config(tmp_path, *OPTIONS), assemble, data=3)
    with pytest.raises(ValueError, match="name='in-code' says that the run was given its data in code"):
        load("in-code")
