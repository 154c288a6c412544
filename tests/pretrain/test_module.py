"""The engine keeps its promises to an objective: hooks, progress, draws seeded by step."""

import dataclasses
import io
import itertools
import re
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from rich.console import Console

import ssl_blocks as sb
from ssl_blocks import (
    BlobPartitioner,
    Objective,
    Progress,
    SegmentPrediction,
    Serialization,
    SquarePartitioner,
)
from ssl_blocks.data import RandomResizedCropFlip
from ssl_blocks.engine import CroppedDataConfig, OptimizerConfig, TrainerConfig, fit as engine, progress
from ssl_blocks.engine.loop import Loop
from ssl_blocks.engine.progress import RichRunProgress
from ssl_blocks.pretrain import PretrainModule, RunConfig
from ssl_blocks.pretrain.callbacks import OnlineScores
from ssl_blocks.pretrain.scoring import Sample
from ssl_blocks.randomness import seeded_generator
from tests.pretrain.small import Untouched
from tests.recipes import build, some_data


def some_config(**optimizer: object) -> RunConfig:
    return RunConfig(
        name="test",
        data=CroppedDataConfig(crop_scale=(0.5, 1.0)),
        optimizer=OptimizerConfig(**{"batch_size": 8, "warmup_epochs": 1, "clip_grad": 1.0, **optimizer}),
        trainer=TrainerConfig(epochs=2),
    )


class Recorder(Objective):
    """Wraps an objective and writes down what the engine asks of it."""

    def __init__(self, inner: SegmentPrediction) -> None:
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


class OneDrawPerStep(Recorder):
    """Draws for the whole batch of a step, and deals it out to the parts."""

    def __init__(self, inner: SegmentPrediction, parts: int) -> None:
        super().__init__(inner)
        self.parts, self.part, self.step, self.counts = parts, 0, 0, []

    def before_step(self, progress: Progress) -> None:
        self.step, self.part = progress.step, 0

    def draw(self, images, *, generator=None):
        whole = torch.zeros(len(images) * self.parts, *images.shape[1:])
        draw = self.inner.draw(whole, generator=seeded_generator("cpu", 7, self.step))
        mine = slice(self.part * len(images), (self.part + 1) * len(images))
        self.part += 1
        return Serialization(draw.order[mine], draw.step[mine], draw.step_sizes)

    def forward(self, images, draw=None):
        out = self.inner(images, draw)
        self.counts.append(int(out.is_target.sum()))
        return out


class Losses(pl.Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        if pl_module.step_is_done:
            self.losses.append(float(pl_module.latest["loss"]))


def fit(objective, *callbacks: pl.Callback, config: RunConfig | None = None, num: int = 16) -> PretrainModule:
    """Train for two epochs, of two steps where there are 16 images."""
    module = PretrainModule(objective, some_data(num), some_config() if config is None else config)
    fit_loop(Loop(module), *callbacks)
    return module


def fit_loop(loop: Loop, *callbacks: pl.Callback) -> None:
    engine.fit(loop, callbacks=callbacks)


def small_objective() -> SegmentPrediction:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(SquarePartitioner(sides=(2,)), depth=2, decoder_depth=1)


def test_every_step_calls_before_draw_forward_after_in_this_order() -> None:
    recorder = Recorder(small_objective())
    fit(recorder)
    assert [name for name, _ in recorder.calls] == ["before", "draw", "forward", "after"] * 4
    told = [value for name, value in recorder.calls if name == "before"]
    assert told == [Progress(step=s, epoch=s // 2, num_steps=4, steps_per_epoch=2) for s in range(4)]
    weights = [value for name, value in recorder.calls if name == "after"]
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(weights[1:]))  # after the update


def test_draws_depend_on_the_step_and_repeat_with_the_seed() -> None:
    first, second = Recorder(small_objective()), Recorder(small_objective())
    fit(first)
    torch.manual_seed(999)  # the global generator has no say
    fit(second)
    orders = [value for name, value in first.calls if name == "draw"]
    assert all(torch.equal(a, b) for a, b in zip(orders, [v for n, v in second.calls if n == "draw"], strict=True))
    assert not torch.equal(orders[0], orders[1])
    images = [[v for n, v in r.calls if n == "forward"] for r in (first, second)]
    assert all(torch.equal(a, b) for a, b in zip(*images, strict=True))


def test_check_refuses_parts_that_do_not_fit() -> None:
    objective = small_objective()
    objective.reader.router.mix = torch.nn.Linear(7, objective.reader.router.mix.out_features)
    with pytest.raises(ValueError, match="encoder_depth=7"):
        PretrainModule(objective, some_data(), some_config()).check()
    with pytest.raises(ValueError, match="batch_size=8"):
        PretrainModule(small_objective(), some_data(num=4), some_config()).check()


def test_progress_prints_plain_lines_where_there_is_no_terminal() -> None:
    text = io.StringIO()
    fit(small_objective(), RichRunProgress(Console(file=text, width=120), "training"))
    lines = text.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[-1].startswith("step 4/4  loss ")
    for word in ("lr ", "images/s", "left "):
        assert word in lines[-1]


@pytest.mark.usefixtures("numbers_come_late")
@pytest.mark.parametrize(("every", "steps"), [(4, [4, 6]), (None, list(range(1, 7)))])
def test_progress_prints_the_numbers_of_the_steps_that_were_asked_for(every: int | None, steps: list[int]) -> None:
    text, recorder = io.StringIO(), Losses()
    fit(small_objective(), RichRunProgress(Console(file=text, width=120), "training", every=every), recorder, num=24)
    shown = [(line.split()[1], line.split()[3]) for line in text.getvalue().splitlines()]
    assert shown == [(f"{step}/6", f"{recorder.losses[step - 1]:.4f}") for step in steps]


def test_progress_draws_a_bar_in_a_terminal() -> None:
    text = io.StringIO()
    fit(small_objective(), RichRunProgress(Console(file=text, width=160, force_terminal=True), "[/home/me] {x}"))
    assert "4/4" in text.getvalue()
    assert "[/home/me] {x}" in text.getvalue()


def test_progress_draws_a_bar_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    def display(html, *, display_id: bool):
        assert display_id
        shown.append(html.data)
        return SimpleNamespace(update=lambda html: shown.append(html.data))

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr(progress, "PAUSE", 0.0)
    text = io.StringIO()
    console = Console(file=text, force_jupyter=True, width=80)
    fit(small_objective(), RichRunProgress(console, "<b>", lambda: "  kNN > 3"))
    assert len(shown) > 3
    assert all("<progress" in line and "&lt;b&gt;" in line for line in shown)
    assert re.search(r'value="0" max="4".* 0/4 ', shown[0])
    assert re.search(r'value="4" max="4".* 4/4  loss .* images/s  kNN &gt; 3  left 0 s', shown[-1])
    assert text.getvalue() == ""


def test_long_silence_is_broken_where_lines_are_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SILENCE", 0.0)
    callback = RichRunProgress(Console(file=io.StringIO()), "training")
    assert callback._is_due(1, 1000)
    monkeypatch.setattr(progress, "SILENCE", 1e9)
    assert not callback._is_due(1, 1000)
    assert callback._is_due(100, 1000)


def test_online_knn_equals_knn_of_the_features_afterwards() -> None:
    from ssl_blocks.data import to_float
    from ssl_blocks.evaluation import knn_accuracy

    data = some_data()
    objective = small_objective()
    knn = OnlineScores(objective, Sample(data, autocast_dtype=None), knn_every=10)
    fit(objective, knn, num=len(data.train))
    encoder = objective.encoder
    with torch.no_grad():
        bank, test = (encoder.features(to_float(s.images, data.mean, data.std)) for s in (data.train, data.test))
    assert knn.latest["knn"] == pytest.approx(knn_accuracy(bank, data.train.labels, test, data.test.labels, k=20))


def test_scoring_leaves_every_module_in_its_mode() -> None:
    data, objective = some_data(), small_objective()
    objective.train()
    objective.encoder.module.norm.eval()  # frozen by the user, say
    Sample(data, autocast_dtype=None).of_encoder(objective, "cpu")
    modes = {name: part.training for name, part in objective.encoder.module.named_modules()}
    assert modes.pop("norm") is False
    assert all(modes.values())


def test_every_epoch_shuffles_anew_and_every_step_augments() -> None:
    from ssl_blocks.data import RunSampler, to_float

    data, recorder = some_data(16), Recorder(small_objective())
    fit(recorder)
    seen = [value for name, value in recorder.calls if name == "forward"]
    for step, places in enumerate(RunSampler(16, 8, seed=0, epochs=2)):
        plain = to_float(data.train.images[[place.image for place in places]], data.mean, data.std)
        augment = RandomResizedCropFlip((16, 16), scale=(0.5, 1.0))
        expected = augment(plain, generator=seeded_generator("cpu", 0, 0, step))
        assert torch.equal(seen[step], expected)
        assert not torch.equal(seen[step], plain)


def test_accumulated_parts_make_the_step_of_the_whole_batch() -> None:
    """Blobs: the parts predict different numbers of tokens, so that a mean of their means would be another loss."""
    runs = {}
    for parts in (1, 2):
        recorder = OneDrawPerStep(build(BlobPartitioner(counts=(5,)), seed=0), parts=parts)
        module = PretrainModule(recorder, some_data(24), some_config(accumulate=parts))
        module.augment = Untouched()
        # AdamW would make steps of full size out of gradients that are rounding errors (the keys' biases)
        sgd = torch.optim.SGD(recorder.parameters(), lr=0.1)
        loop, log = Loop(module), Losses()
        loop.configure_optimizers = lambda sgd=sgd: sgd
        fit_loop(loop, log)
        runs[parts] = (log.losses, recorder.state_dict(), recorder.counts)
    counts = torch.tensor(runs[2][2]).view(-1, 2)
    assert (counts[:, 0] != counts[:, 1]).any()
    assert runs[1][0] == pytest.approx(runs[2][0], rel=1e-5)
    for name, value in runs[1][1].items():
        torch.testing.assert_close(runs[2][1][name], value, rtol=1e-4, atol=1e-6)


def test_hooks_are_called_once_a_step_where_batches_are_accumulated() -> None:
    recorder = Recorder(small_objective())
    fit(recorder, config=some_config(accumulate=2))
    assert [name for name, _ in recorder.calls] == ["before", "draw", "forward", "draw", "forward", "after"] * 4
    first, second = [value for name, value in recorder.calls if name == "draw"][:2]
    assert not torch.equal(first, second)


def test_gradients_of_squares_are_left_exactly_as_they_are() -> None:
    """Every row counts, so the scale is 1 and not nearly 1: the plain step in PyTorch gives the same bits."""
    recorder = Recorder(small_objective())
    module = PretrainModule(recorder, some_data(8), some_config(clip_grad=None))
    grads: list[torch.Tensor] = []
    recorder.after_step = lambda: grads.append(recorder.inner.head.weight.grad.clone())
    fit_loop(Loop(module))
    plain = small_objective()
    images = next(value for name, value in recorder.calls if name == "forward")
    generator = seeded_generator("cpu", 0, 0, 0)
    module.augment(torch.zeros_like(images), generator=generator)  # takes its share of the draws
    plain(images, plain.draw(images, generator=generator)).loss.backward()
    assert torch.equal(grads[0], plain.head.weight.grad)


def test_dropout_follows_the_step_not_the_global_generator() -> None:
    weights = []
    for seed in (1, 2):
        objective = small_objective()
        objective.encoder.module.pos_drop = torch.nn.Dropout(0.3)
        torch.manual_seed(seed)
        fit(objective)
        weights.append(objective.head.weight)
    assert torch.equal(*weights)
    without = small_objective()
    fit(without)
    assert not torch.equal(weights[0], without.head.weight)


def test_trying_two_images_leaves_modes_and_statistics_alone() -> None:
    objective = small_objective()
    objective.head = torch.nn.Sequential(torch.nn.BatchNorm1d(60), objective.head)
    objective.encoder.module.norm.eval()
    before = {name: part.training for name, part in objective.named_modules()}
    PretrainModule(objective, some_data(), some_config()).check()
    assert before == {name: part.training for name, part in objective.named_modules()}
    assert objective.head[0].num_batches_tracked == 0


def check(objective: Objective, **optimizer: object) -> PretrainModule:
    module = PretrainModule(objective, some_data(), some_config(**optimizer))
    module.check()
    return module


class Unused(Objective):
    """An objective with layers that are used always, in training alone, or never."""

    def __init__(self, inner: SegmentPrediction) -> None:
        super().__init__()
        self.inner, self.tokenizer, self.encoder = inner, inner.tokenizer, inner.encoder
        self.now_and_then, self.never = (torch.nn.Linear(4, 4) for _ in range(2))
        self.norm = torch.nn.BatchNorm1d(4)

    def draw(self, images, *, generator=None):
        return self.inner.draw(images, generator=generator)

    def forward(self, images, draw=None):
        out = self.inner(images, draw)
        x = self.norm(images.flatten(1)[:, :4])
        return dataclasses.replace(out, loss=out.loss + (self.now_and_then(x) if self.training else x).mean())


def test_parameters_without_a_gradient_are_named_before_training() -> None:
    objective = Unused(small_objective())
    state = torch.get_rng_state()
    message = r"no gradient reaches 2 parameters of Unused, .*: never.weight, never.bias. Leave them out, or freeze"
    with pytest.raises(ValueError, match=message):
        check(objective)
    assert objective.norm.num_batches_tracked == 0
    assert all(p.grad is None for p in objective.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    objective.never.requires_grad_(False)
    check(objective)


def test_a_loss_that_is_no_scalar_is_refused() -> None:
    objective = small_objective()
    objective.register_forward_hook(lambda _, __, out: SimpleNamespace(loss=out.loss.expand(3)))
    with pytest.raises(ValueError, match=r"the loss of SegmentPrediction must be a scalar, got shape \(3,\)"):
        check(objective)


class Contrast:
    """A plain part whose statistics are of the images at hand."""

    per_process = True


def test_what_batch_statistics_mean_is_told_where_it_is_not_what_one_process_means() -> None:
    objective = small_objective()
    assert check(objective).remarks(2) == []
    objective.contrast, objective.norms = Contrast(), torch.nn.Sequential(torch.nn.BatchNorm1d(3, affine=False))
    remark = "batch statistics of BatchNorm1d, Contrast are of {} images each, not of the 8"
    assert check(objective).remarks(1) == []
    assert check(objective).remarks(2) == [remark.format(4)]
    assert check(objective, accumulate=4).remarks(1) == [remark.format(2)]
    objective.contrast.per_process, objective.contrast.per_part = False, True
    objective.norms = torch.nn.SyncBatchNorm(3, affine=False)
    remark = "batch statistics of Contrast, SyncBatchNorm are of {} images each, not of the 8"
    assert check(objective).remarks(2) == []
    assert check(objective, accumulate=2).remarks(2) == [remark.format(4)]


def test_a_joint_embedding_says_that_accumulated_parts_are_batches_of_their_own() -> None:
    encoder = sb.encoders.TokenRegions(small_objective().encoder)
    objective = sb.objectives.JointEmbedding(encoder=encoder, loss=sb.parts.nt_xent)
    module = PretrainModule(objective, some_data(), some_config(accumulate=2))
    assert module.remarks(2) == ["batch statistics of JointEmbedding are of 4 images each, not of the 8"]


def test_a_long_run_is_worth_compiling_and_a_short_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    module = PretrainModule(build(SquarePartitioner(sides=(2,))), some_data(), some_config())
    for more, number in ((0, 1), (1, 0)):
        monkeypatch.setattr("ssl_blocks.pretrain.module.WORTH_COMPILING", module.plan.num_steps + more)
        assert len(module.remarks(1, on_gpu=True)) == number


def test_a_warmup_that_is_cut_is_told() -> None:
    module = PretrainModule(build(SquarePartitioner(sides=(2,))), some_data(), some_config(warmup_epochs=30))
    assert module.plan.warmup_steps == module.plan.num_steps // 10 == 1
    assert module.remarks(1) == [
        "optimizer.warmup_epochs=30 is not shorter than trainer.epochs=2: the warm-up takes a tenth of the run, "
        "0.2 epochs"
    ]
    assert PretrainModule(build(SquarePartitioner(sides=(2,))), some_data(), some_config()).remarks(1) == []
