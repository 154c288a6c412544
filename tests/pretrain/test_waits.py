"""No recipe makes an accelerator wait within a step: augmentation, draw, forward, backward, and what follows them."""

import pytest
import torch

from ssl_blocks.data import ImageData, ImageSplit, MultiCrop, RandomResizedCropFlip, train_loader
from ssl_blocks.engine.task import Moment
from ssl_blocks.pretrain import PretrainModule
from ssl_blocks.recipes import RECIPES
from ssl_blocks.testing import WaitError, assert_no_wait
from ssl_blocks.values import Progress
from tests.pretrain.test_presets import PRESETS, load, shape_of

NAMES = [name for name in PRESETS if name.endswith("_cifar_small") and "dino" not in name]


def step(objective, batch, config, data):
    module = PretrainModule(objective, data, config)
    module.before_step(Progress(step=1, epoch=1, num_steps=4, steps_per_epoch=1))
    module.loss(batch, Moment(step=1, part=0, generator=None)).mean.backward()  # the meta device has no generators
    module.after_step()


def prepared(name, *overrides):
    config, data = load(name, *overrides), ImageData.stand_in(shape_of(name), num_train=4)
    return RECIPES[name.partition("_")[0]].assemble(config, data), data.train.images, config, data


SMALLER = {
    "saim": ("--encoder.depth=2", "--query_depth=2"),
    "combined": ("--encoder.depth=1", "--decoder.depth=1", "--dino.out_dim=16", "--dino.hidden_dim=16"),
    "esvit": ("--encoder.stage_depths=1,1", "--head.out_dim=16", "--head.hidden=16"),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_step_waits_for_nothing(name):
    assert_no_wait(step, *prepared(name, *SMALLER.get(name.partition("_")[0], ["--encoder.depth=1"])))


def test_every_recipe_is_looked_at():
    assert {name.partition("_")[0] for name in NAMES} == set(RECIPES)


def test_a_step_that_waits_is_found():
    objective, *rest = prepared("mae_cifar_small")
    plain = type(objective).after_step
    type(objective).after_step = lambda self: float(self.head.weight.sum())
    try:
        with pytest.raises(WaitError, match=r"a read of its values: .* in test_waits.py"):
            assert_no_wait(step, objective, *rest)
    finally:
        type(objective).after_step = plain


def test_images_of_an_epoch_are_picked_by_one_index_tensor():
    images = torch.zeros(24, 3, 4, 4, dtype=torch.uint8)
    loader = iter(
        train_loader(ImageSplit(images, None), seed=0, crop=RandomResizedCropFlip(4), batch_size=4, device="meta")
    )
    assert_no_wait(next, loader)  # the first batch brings the order
    assert next(loader).is_meta


@pytest.mark.parametrize(("size", "channels"), [(8, 3), (20, 1)])
def test_augmentations_wait_for_nothing(size, channels):
    images = torch.rand(2, channels, 16, 12)
    assert_no_wait(lambda x: RandomResizedCropFlip(size)(x), images)
    crops = MultiCrop(size, 6, num_local=1, mean=(0.5,) * channels, std=(0.2,) * channels)
    assert_no_wait(lambda x: crops(x), images)
