"""The engine keeps its promises to an objective: hooks, progress, draws seeded by step."""

import io
import itertools
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from rich.console import Console

from ssl_blocks import ObjectiveModule, Progress, SegmentAutoregression, SquarePartitioner
from ssl_blocks.data import RandomResizedCropFlip
from ssl_blocks.randomness import seeded_generator
from ssl_blocks.training import DataConfig, OptimizerConfig, PretrainModule, RunConfig, TrainerConfig
from ssl_blocks.training.callbacks import OnlineKnn, RichRunProgress
from tests.recipes import build, some_data


def some_config(**trainer: object) -> RunConfig:
    return RunConfig(
        name="test",
        data=DataConfig(crop_scale=(0.5, 1.0)),
        optimizer=OptimizerConfig(batch_size=8, warmup_epochs=1, clip_grad=1.0),
        trainer=TrainerConfig(epochs=2, **trainer),
    )


class Recorder(ObjectiveModule):
    """Wraps an objective and writes down what the engine asks of it."""

    def __init__(self, inner: SegmentAutoregression) -> None:
        super().__init__()
        self.inner, self.calls = inner, []
        self.tokenizer, self.encoder = inner.tokenizer, inner.encoder

    def draw(self, images, *, generator=None):
        draw = self.inner.draw(images, generator=generator)
        self.calls.append(("draw", draw.order.clone()))
        return draw

    def forward(self, images, draw=None):
        self.calls.append(("forward", images.detach().clone()))
        return self.inner(images, draw)

    def before_step(self, progress: Progress) -> None:
        self.calls.append(("before", progress))

    def after_step(self) -> None:
        self.calls.append(("after", self.inner.head.weight.detach().clone()))

    def no_weight_decay(self) -> set[str]:
        return set()

    def export_encoder(self):
        return self.inner.export_encoder()


def fit(objective, tmp_path: Path, *callbacks: pl.Callback, config: RunConfig | None = None) -> PretrainModule:
    config = some_config() if config is None else config
    module = PretrainModule(objective, some_data(), config)
    trainer = pl.Trainer(
        max_epochs=config.trainer.epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
        callbacks=list(callbacks),
    )
    trainer.fit(module)
    return module


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
]


def small_objective() -> SegmentAutoregression:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(SquarePartitioner(sides=(2,)))


def test_every_step_calls_before_draw_forward_after_in_this_order(tmp_path: Path) -> None:
    recorder = Recorder(small_objective())
    fit(recorder, tmp_path)
    assert [name for name, _ in recorder.calls] == ["before", "draw", "forward", "after"] * 10
    told = [value for name, value in recorder.calls if name == "before"]
    assert told == [Progress(step=s, epoch=s // 5, num_steps=10, steps_per_epoch=5) for s in range(10)]
    weights = [value for name, value in recorder.calls if name == "after"]
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(weights[1:]))  # after the update


def test_draws_depend_on_the_step_and_repeat_with_the_seed(tmp_path: Path) -> None:
    first, second = Recorder(small_objective()), Recorder(small_objective())
    fit(first, tmp_path)
    torch.manual_seed(999)  # the global generator has no say
    fit(second, tmp_path)
    orders = [value for name, value in first.calls if name == "draw"]
    assert all(torch.equal(a, b) for a, b in zip(orders, [v for n, v in second.calls if n == "draw"], strict=True))
    assert not torch.equal(orders[0], orders[1])
    images = [[v for n, v in r.calls if n == "forward"] for r in (first, second)]
    assert all(torch.equal(a, b) for a, b in zip(*images, strict=True))


def test_check_refuses_parts_that_do_not_fit() -> None:
    objective = small_objective()
    objective.router.mix = torch.nn.Linear(7, objective.router.mix.out_features)
    with pytest.raises(ValueError, match="encoder_depth=7"):
        PretrainModule(objective, some_data(), some_config()).check()
    with pytest.raises(ValueError, match="batch_size=8"):
        PretrainModule(small_objective(), some_data(num=4), some_config()).check()


def test_progress_prints_plain_lines_where_there_is_no_terminal(tmp_path: Path) -> None:
    text = io.StringIO()
    fit(small_objective(), tmp_path, RichRunProgress(Console(file=text, width=120)))
    lines = text.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[-1].startswith("step 10/10  loss ")
    for word in ("lr ", "images/s", "left "):
        assert word in lines[-1]


def test_progress_draws_a_bar_in_a_terminal(tmp_path: Path) -> None:
    text = io.StringIO()
    fit(small_objective(), tmp_path, RichRunProgress(Console(file=text, width=160, force_terminal=True)))
    assert "10/10" in text.getvalue()
    assert "pretraining" in text.getvalue()


def test_online_knn_equals_knn_of_the_features_afterwards(tmp_path: Path) -> None:
    from ssl_blocks.data import to_float
    from ssl_blocks.evaluation import knn_accuracy

    data = some_data()
    knn = OnlineKnn(data, every=2, bank_size=40, autocast_dtype=None)
    module = fit(small_objective(), tmp_path, knn)
    logged = float(module.trainer.callback_metrics["knn"])
    encoder = module.objective.encoder
    with torch.no_grad():
        bank, test = (encoder.features(to_float(s.images, data.mean, data.std)) for s in (data.train, data.test))
    assert logged == pytest.approx(knn_accuracy(bank, data.train.labels, test, data.test.labels, k=20))


def test_scoring_leaves_every_module_in_its_mode() -> None:
    data, objective = some_data(), small_objective()
    module = PretrainModule(objective, data, some_config()).train()
    objective.encoder.module.norm.eval()  # frozen by the user, say
    OnlineKnn(data, every=1, bank_size=40, autocast_dtype=None).score(module)
    modes = {name: part.training for name, part in objective.encoder.module.named_modules()}
    assert modes.pop("norm") is False
    assert all(modes.values())


def test_every_epoch_shuffles_anew_and_every_step_augments(tmp_path: Path) -> None:
    from ssl_blocks.data import EpochBatches, to_float

    data, recorder = some_data(), Recorder(small_objective())
    fit(recorder, tmp_path)
    seen = [value for name, value in recorder.calls if name == "forward"]
    batches = EpochBatches(data.train.images, 8, seed=0)
    for epoch in range(2):
        batches.set_epoch(epoch)
        for i in range(5):
            step = 5 * epoch + i
            plain = to_float(batches[i], data.mean, data.std)
            augment = RandomResizedCropFlip((16, 16), scale=(0.5, 1.0))
            expected = augment(plain, generator=seeded_generator("cpu", 0, 0, step))
            assert torch.equal(seen[step], expected)
            assert not torch.equal(seen[step], plain)
