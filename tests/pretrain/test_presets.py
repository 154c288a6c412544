"""The paper's presets: every number, at full size on the meta device."""

from functools import cache

import pytest
import torch

import ssl_blocks as sb
from ssl_blocks.cli import load_config
from ssl_blocks.data import ImageData, ImageShape
from ssl_blocks.data.sources import find_shape
from ssl_blocks.engine.optimizers import parameter_groups
from ssl_blocks.modes import without_weights
from ssl_blocks.pretrain import RunConfig
from ssl_blocks.pretrain.estimate import count_parameters
from ssl_blocks.recipes import RECIPES
from tests.recipes import blank

SMALL, LARGE = ImageShape(3, 32, 32), ImageShape(3, 192, 192)
PRESETS = {name: file for recipe in RECIPES.values() for name, file in recipe.preset_files().items()}
OWN_SIZE = {name: find_shape(name) for name in ("digits", "crowds", "stl10")}


def shape_of(preset: str) -> ImageShape:
    """Shape of the images: as configured, or the data set's own."""
    data = load(preset).data
    own = OWN_SIZE.get(data.name, SMALL)
    return own if data.image_size is None else ImageShape(3, data.image_size, data.image_size)


VIEWS = [name for name in PRESETS if name.startswith(("combined", "esvit"))]
PAPER = [name for name in PRESETS if not name.endswith(("_small", "_digits", "_images"))]
LEARNED = {  # what gives a recipe all that must not decay
    "randsac": ("--encoder.positions=learned", "--encoder.class_token=true", "--decoder.positions=learned"),
    "mae": ("--encoder.positions=learned", "--encoder.class_token=true", "--decoder.positions=learned"),
    "saim": ("--encoder.positions=learned", "--encoder.class_token=true"),  # queries have fixed positions
    "apl": (),
    "esvit": (),
}
NOT_DECAYING = {
    "randsac": {"pos_embed", "cls_token", "table"},
    "mae": {"pos_embed", "cls_token", "table", "mask_token"},
    "saim": {"pos_embed", "cls_token"},
    "apl": set(),
    "esvit": {"relative_position_bias_table"},
}


def load(name: str, *overrides: str) -> RunConfig:
    return load_config(RECIPES[name.partition("_")[0]], ["--preset", name, *overrides])


# one of each recipe, and of each shape of images: all blocks of a model are alike
OF_A_KIND = {
    *{shape_of(name): name for name in PRESETS}.values(),
    *{name.partition("_")[0]: name for name in PRESETS}.values(),
}


@cache
def build(name: str, *overrides: str) -> sb.Objective:
    data = ImageData.stand_in(shape_of(name), num_train=1)
    with without_weights():
        return RECIPES[name.partition("_")[0]].assemble(load(name, *overrides), data)


def millions(objective: sb.Objective) -> tuple[float, float]:
    """Encoder, and all that pretraining adds to it."""
    counts = count_parameters(objective)
    encoder = counts.pop("encoder").total
    return encoder / 1e6, sum(count.total for count in counts.values()) / 1e6


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in VIEWS])
@pytest.mark.process
def test_every_preset_builds_at_full_size_and_predicts(name: str) -> None:
    objective = build(name)
    images = torch.zeros(2, *shape_of(name), device="meta")
    draw = objective.draw(images)
    if name not in OF_A_KIND:
        return
    out = objective(images, draw)
    assert out.loss.device.type == "meta"
    assert out.predictions.shape[-1] == objective.target.dim


# The paper speaks of 5M + 2M for ViT-T and 21M + 9M for ViT-S, both with four decoder layers, and of 86M for ViT-B. Its
# low-data runs have six decoder layers, which is half as much again.
@pytest.mark.parametrize(
    ("name", "overrides", "encoder", "decoder"),
    [
        ("randsac_cifar10", (), 5, 2),
        ("randsac_cifar10", ("--encoder.width", "384", "--encoder.heads", "6", "--decoder.heads", "6"), 21, 9),
        ("randsac_lowdata_square", ("--decoder.depth", "4"), 21, 9),
        ("randsac_lowdata_square", (), 21, 14),
        ("randsac_lowdata_blob", (), 21, 14),
        ("randsac_imagenet1k", (), 86, 76),
        ("randsac_imagenet100", (), 21, 9),
        ("mae_cifar10", (), 5, 2),  # as large as what it is the baseline of
        ("mae_imagenet_vitb", (), 86, 26),
        ("mae_imagenet_vitl", (), 303, 26),
        ("saim_imagenet_vitb", (), 86, 90),  # as many blocks again, and the head
        ("saim_imagenet_vitb", ("--share_weights", "true"), 86, 5),
    ],
)
def test_sizes_are_the_papers(name: str, overrides: tuple[str, ...], encoder: int, decoder: int) -> None:
    found = millions(build(name, *overrides))
    # the papers give whole millions: ViT-S with patches of 16 has 21.6 and 9.8
    assert found[0] == pytest.approx(encoder, abs=0.8)
    assert found[1] == pytest.approx(decoder, abs=0.8)


@pytest.mark.parametrize(
    ("name", "depth", "width", "heads", "decoder", "base_lr", "batch", "warmup", "epochs", "segments", "raw"),
    [
        ("randsac_cifar10", 12, 192, 3, 4, 1e-3, 512, 10, 800, (16, 4), True),
        ("randsac_lowdata_square", 12, 384, 6, 6, 1e-3, 512, 10, 1600, (16, 4), False),
        ("randsac_lowdata_blob", 12, 384, 6, 6, 1e-3, 512, 10, 1600, (11, 5), False),
        ("randsac_imagenet1k", 12, 768, 12, 8, 2e-4, 4096, 40, 1600, (16, 4), False),
        ("randsac_imagenet100", 12, 384, 6, 4, 1.5e-4, 4096, 40, 800, (16, 4), False),
    ],
)
def test_numbers_are_the_papers(
    name: str,
    depth: int,
    width: int,
    heads: int,
    decoder: int,
    base_lr: float,
    batch: int,
    warmup: int,
    epochs: int,
    segments: tuple[int, ...],
    raw: bool,
) -> None:
    config, objective = load(name), build(name)
    encoder, optimizer = objective.encoder, config.optimizer
    assert (encoder.depth, encoder.dim, encoder.module.blocks[0].attn.num_heads) == (depth, width, heads)
    assert len(objective.reader.decoder.layers) == decoder
    assert (optimizer.base_lr, optimizer.batch_size, optimizer.weight_decay) == (base_lr, batch, 0.05)
    assert optimizer.lr == pytest.approx(base_lr * batch / 256)
    assert (optimizer.warmup_epochs, config.trainer.epochs) == (warmup, epochs)
    assert optimizer.betas == ((0.9, 0.95) if "imagenet" in name else (0.9, 0.999))
    decoder_heads = objective.reader.decoder.layers[0].cross_attn.num_heads
    assert decoder_heads == (2 * heads if name == "randsac_imagenet100" else heads)
    assert (config.data.crop_scale, config.data.flip) == ((0.2, 1.0), True)
    assert objective.partitioner(blank(1), encoder.grid).counts == segments
    assert objective.target.normalize is not raw
    assert encoder.patch == ((16, 16) if shape_of(name) == LARGE else (4, 4))
    assert config.data.image_size in (None, shape_of(name).height)


@pytest.mark.parametrize("recipe", LEARNED)
def test_norms_biases_positions_and_tokens_do_not_decay(recipe: str) -> None:
    objective = build(next(name for name in PAPER if name.startswith(recipe)), *LEARNED[recipe])
    names = {id(p): n for n, p in objective.named_parameters()}
    dims = {n: p.ndim for n, p in objective.named_parameters()}
    decaying, spared = parameter_groups(objective, weight_decay=0.05, no_weight_decay=objective.no_weight_decay())
    of = [{names[id(p)] for p in group["params"]} for group in (decaying, spared)]  # type: ignore[attr-defined]
    assert (decaying["weight_decay"], spared["weight_decay"]) == (0.05, 0.0)
    assert all(n.endswith(("weight", ".original1")) and "norm." not in n for n in of[0])
    spared_matrices = {n for n in of[1] if dims[n] > 1}
    assert {n.rpartition(".")[2] for n in spared_matrices} == NOT_DECAYING[recipe]


@pytest.mark.parametrize("name", PAPER)
def test_preset_says_where_its_numbers_come_from(name: str) -> None:
    text = PRESETS[name].read_text()
    comment = text[: text.index(f"name: {name}")]
    # where neither tables nor a number on arXiv are known, the paper is named
    sources = {
        "apl": ("Paper     APL, the patch puzzle",),
        "esvit": ('EsViT, "Efficient Self-supervised Vision Transformers',),
        "saim": ("Exploring Stochastic Autoregressive Image Modeling", "arXiv"),
    }
    source = sources.get(name.partition("_")[0], ("Table ", "arXiv"))
    for part in (*source, f"--preset {name}", "Hardware", "not measured", "Assumed"):
        assert part in comment


def test_a_recipe_knows_its_own_presets_only() -> None:
    with pytest.raises(
        ValueError, match=r"--preset 'mae_cifar10' is neither a preset nor a YAML file; .*presets: rand"
    ):
        load_config(RECIPES["randsac"], ["--preset", "mae_cifar10"])


def test_numbers_of_mae_are_the_papers() -> None:
    config, objective = load("mae_imagenet_vitb"), build("mae_imagenet_vitb")
    optimizer = config.optimizer
    assert (optimizer.base_lr, optimizer.batch_size, optimizer.weight_decay) == (1.5e-4, 4096, 0.05)
    assert (optimizer.betas, optimizer.warmup_epochs) == ((0.9, 0.95), 40)
    assert (len(objective.reader.decoder.blocks), objective.reader.decoder.dim) == (8, 512)
    assert objective.partitioner(blank(1), objective.encoder.grid).step_sizes == (49, 147)
    assert (objective.target.normalize, objective.encoder.num_prefix) == (True, 1)


def test_numbers_of_saim_are_its_published_commands() -> None:
    config, objective = load("saim_imagenet_vitb"), build("saim_imagenet_vitb")
    optimizer = config.optimizer
    assert (optimizer.base_lr, optimizer.batch_size, optimizer.weight_decay) == (2e-4, 2048, 0.5)
    assert (optimizer.warmup_epochs, config.trainer.epochs) == (30, 800)
    assert (objective.encoder.depth, objective.reader.decoder.depth, objective.encoder.dim) == (12, 12, 768)
    assert (objective.target.blur, objective.target.normalize, objective.predict_first) == ((9, 1.0), True, True)
    assert (objective.head.fc1.out_features, objective.head.fc2.out_features) == (3072, 768)


def test_numbers_of_the_puzzle_are_the_published_ones() -> None:
    config, objective = load("apl_stl10"), build("apl_stl10")
    encoder, optimizer = objective.encoder, config.optimizer
    assert (str(encoder.grid), encoder.patch, encoder.dim) == ("7x7", (12, 12), 432)
    assert encoder.model_args | {"grid": 0, "patch": 0} == {
        "grid": 0,
        "patch": 0,
        "channels": 3,
        "depth": 4,
        "num_heads": 16,
        "mlp_ratio": 3,
        "dropout": 0.15,
    }
    assert objective.patch_dropout == 0.1
    assert (optimizer.lr, optimizer.batch_size, config.trainer.epochs) == (pytest.approx(1.15e-3), 1024, 300)
    assert (optimizer.weight_decay, optimizer.warmup_start, optimizer.schedule) == (0, 0.5, "apl")
    assert optimizer.warmup_epochs == int(0.05 * config.trainer.epochs)
    assert optimizer.min_lr == pytest.approx(0.1 * optimizer.lr)
    assert config.data.crop_scale == (1, 1)


@pytest.mark.parametrize("name", ["randsac_images", "mae_images"])
def test_presets_for_own_images_take_all_of_them_at_full_size(name: str) -> None:
    config, encoder = load(name, "--data.name=imagefolder:photos"), build(name).encoder
    assert (config.data.max_train, config.data.max_test, config.data.storage) == (None, None, "auto")
    assert (str(encoder.grid), encoder.patch, encoder.dim, encoder.depth) == ("14x14", (16, 16), 384, 12)
    assert config.optimizer.warmup_remark(config.trainer.epochs) is None


@pytest.mark.parametrize("name", [name for name in VIEWS if name != "esvit_cifar_small"])  # that one: test_waits.py
def test_presets_of_views_build_at_full_size_and_compare(name: str) -> None:
    config, objective = load(name), build(name)
    shape = shape_of(name)
    views = config.augmentation(shape, (0.5,) * shape.channels, (0.25,) * shape.channels)(torch.zeros(2, *shape))
    crops = sb.Views(tuple(view.to("meta") for view in views.images), views.num_global)
    out = objective(crops, objective.draw(crops))
    assert out.loss.device.type == "meta"
    rows = 2 if name.startswith("combined") else 2 * (len(crops.images) - 1)
    assert out.predictions.shape == (2, rows, 1)


def test_numbers_of_esvit() -> None:
    config, objective = load("esvit_imagenet_swint"), build("esvit_imagenet_swint")
    optimizer = config.optimizer
    assert (optimizer.base_lr, optimizer.weight_decay, optimizer.weight_decay_end) == (5e-4, 0.04, 0.4)
    assert (optimizer.warmup_epochs, optimizer.min_lr, optimizer.clip_grad) == (10, 1e-6, 3.0)
    assert optimizer.schedule == "dino"
    assert (config.trainer.epochs, config.crops.num_local, config.crops.local_size) == (300, 8, 96)
    assert objective.center.value.shape == objective.region_center.value.shape == (65_536,)
    assert count_parameters(objective)["encoder"].total / 1e6 == pytest.approx(27.5, abs=0.5)  # Swin-T without a head


@pytest.mark.parametrize("name", PRESETS)
def test_preset_carries_its_own_name(name: str) -> None:
    assert load(name).name == name


def test_no_file_in_a_folder_of_presets_is_lost() -> None:
    files = {file for recipe in RECIPES.values() for file in recipe.presets.iterdir()}
    assert files == set(PRESETS.values())
