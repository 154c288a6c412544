"""One pretraining run from configuration to results: prepare everything, then fit."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

import yaml
from rich.console import Console

from ssl_blocks.data import ImageData
from ssl_blocks.encoders.card import write_card
from ssl_blocks.encoders.hub import export_encoder
from ssl_blocks.engine.bits import what_bits_depend_on
from ssl_blocks.engine.checkpoints import check_checkpoint, list_checkpoints, read_checkpoint
from ssl_blocks.engine.devices import choose_device
from ssl_blocks.engine.lock import locked
from ssl_blocks.engine.parallel import Machine, count_processes
from ssl_blocks.engine.rank import is_rank_zero
from ssl_blocks.evaluation import FeatureQuality, Scores
from ssl_blocks.files import TEMPORARY_SUFFIX, atomically
from ssl_blocks.pretrain.complete import (
    clear_damaged,
    missing_parts,
    seal,
    sealed_pictures,
    stored_scores,
    write_results,
)
from ssl_blocks.pretrain.module import PretrainModule
from ssl_blocks.pretrain.recipe import Assemble, C, build, with_data_in_code
from ssl_blocks.pretrain.report import print_report, stage
from ssl_blocks.pretrain.resume import check_copy, lengthen, starting_point
from ssl_blocks.pretrain.scoring import Sample, has_labels, measure_objective, num_scored
from ssl_blocks.pretrain.state import begin_with
from ssl_blocks.program import VERSION
from ssl_blocks.text import terminal

if TYPE_CHECKING:
    from pytorch_lightning.loggers import Logger

    from ssl_blocks.engine.loop import Loop
    from ssl_blocks.pretrain.callbacks import OnlineScores
    from ssl_blocks.pretrain.watching import Watcher

NUM_TEST = 10_000  # of streamed data, for scores


@dataclass
class Run(Generic[C]):
    """A run whose parts are known to fit; nothing is written before ``fit``.

    Args:
        config: the recipe's configuration.
        data: images.
        module: objective and data, as the loop takes them.
        loop: trains it.
        machine: where, and how precisely.
        checkpoint: from which the run goes on; ``None`` starts at the beginning.
        assemble: builds the objective.
    """

    config: C
    data: ImageData
    module: PretrainModule
    loop: "Loop"
    machine: Machine
    checkpoint: Path | None
    assemble: Assemble[C]

    @classmethod
    def prepare(
        cls, config: C, assemble: Assemble[C], *, data: Any = None, resume: Path | bool | None = None
    ) -> "Run[C]":
        """Load data, assemble the objective, and try all of it once on two images.

        Args:
            config: the recipe's configuration.
            assemble: builds the objective for the data.
            data: in place of ``config.data.name``: what `ssl_blocks.data.load` takes (a data set of torch, an array, a
                tensor, an iterable, a `Source`, or two of these, to train and to test on), or an `ImageData`. A run
                that goes on is given the same data again.
            resume: ``None`` begins a run; ``True`` goes on with it where its folder exists; a path goes on with
                that run, or from that checkpoint.

        Raises:
            FileExistsError: if the run's folder already holds something.
            FileNotFoundError: if there is no run to resume.
            ValueError: if data or parts do not fit, or the checkpoint is damaged or another run's.
            TypeError: if the encoder cannot be kept causal.
        """
        if data is not None:
            config = with_data_in_code(config)
        processes = count_processes(config.trainer, config.optimizer)
        if not is_rank_zero() and resume is None:
            resume = True  # the first process has looked, and may have begun to write
        checkpoint = starting_point(config, resume)
        device, autocast_dtype = choose_device(config.trainer.device, config.trainer.precision, section="trainer.")
        console = terminal(quiet=not is_rank_zero())
        config.trainer.check_loggers()
        with stage(console, "loading the data", later=True) as tell_of_loading:
            images = config.load_data() if data is None else config.load_given(data)
        objective = build(config, assemble, images)
        if config.start is not None and checkpoint is None:
            begin_with(objective, config.start)
        module = PretrainModule(objective, images, config)
        module.check()
        from ssl_blocks.engine.loop import Loop  # Lightning takes seconds to load: mistakes are told before

        machine = Machine(
            device,
            autocast_dtype,
            processes,
            config.trainer.strategy,
            pure=config.trainer.precision == "bf16-pure",
            tf32=config.trainer.precision == "tf32",
            graph="off" if config.trainer.captures_itself else config.trainer.graph,
        )
        loop = Loop(module, machine, folder=config.folder)
        if checkpoint is not None:
            content = check_checkpoint(checkpoint)
            check_copy(config, content, checkpoint)
            loop.continue_from(content, checkpoint)
        tell_of_loading()  # not before: a mistake is one line
        return cls(config, images, module, loop, machine, checkpoint, assemble)

    def fit(self) -> Path:
        """Train, score, export the encoder and draw figures; return the run's folder.

        Raises:
            RunStopped: on a signal, a loss that is no number, files that cannot be written, or another run there.
        """
        from ssl_blocks.engine.fit import ending_in_order

        folder, console = self.config.folder, terminal(quiet=not is_rank_zero())
        trained = self.checkpoint is not None and not self.loop.steps_left
        missing = missing_parts(folder, figures=self.config.trainer.figures) if trained else ["results"]
        if not missing:
            console.print(f"{folder} is complete: nothing is left to do", soft_wrap=True)
            return folder
        with ending_in_order(folder, advice=" (data.corrupt=skip would pass over it)"), locked(folder):
            if "results" in missing:
                self._fit(folder, console)
            elif is_rank_zero():
                self._mend(folder, missing, console)
        return folder

    def _mend(self, folder: Path, missing: list[str], console: Console) -> None:
        """Make again what a trained run lacks, results apart."""
        assert self.checkpoint is not None
        console.print(f"{folder} lacks {', '.join(missing)}, made again", soft_wrap=True)
        self._open(folder, console)
        self.loop.load_state_dict(read_checkpoint(self.checkpoint)["state_dict"])
        self._take_final_weights()
        if "encoder" in missing:
            self._export(folder)
        write_card(folder)
        figures: list[Path] | None = None
        if self.config.trainer.figures:
            again = "figures" in missing
            figures = self._draw(folder, stored_scores(folder), console) if again else sealed_pictures(folder)
        seal(folder, figures)

    def _export(self, folder: Path) -> None:
        objective, data = self.module.objective, self.data
        whole: dict[str, Any] = {"tokenizer": objective.tokenizer, "mean": data.mean, "std": data.std}
        clear_damaged(folder / "encoder")
        export_encoder(objective.export_encoder(), folder / "encoder", **whole, value_range=data.value_range)

    def _remarks(self) -> list[str]:
        machine = self.machine  # the loop learns of its device when it begins
        return [*self.data.remarks, *self.module.remarks(machine.processes.world_size, on_gpu=machine.on_gpu)]

    def _fit(self, folder: Path, console: Console) -> None:
        from ssl_blocks.engine.loggers import open_loggers
        from ssl_blocks.pretrain.watching import Watcher

        if is_rank_zero():
            self._open(folder, console)
            for remark in self._remarks():
                console.print(f"note: {remark}", soft_wrap=True)
        loggers = open_loggers(
            self.config.trainer.loggers,
            folder,
            resumed_step=self.loop.resumed_step,
            hyperparameters=self.module.configuration(),
            tell=partial(console.print, soft_wrap=True),
        )
        # where weights are dealt out, every process has to help with scoring while training
        helps = is_rank_zero() or self.machine.strategy == "fsdp"
        images = self._images_for_scores(console) if helps else None
        sample, scores, quality = self._sample(images), list[Scores](), dict[str, FeatureQuality]()
        watcher = Watcher(self.config, self.module, self.machine, images, sample, console)
        if is_rank_zero():
            first = "random encoder" if self.config.start is None else "encoder at the start"
            scores += self._score("raw pixels", sample, console) + self._score(first, sample, console)
            quality |= watcher.measure(first, self.module.objective)
        self._train(folder, console, loggers, watcher)
        if not is_rank_zero():
            return
        assert images is not None
        self._take_final_weights()
        scores += self._score("pretrained encoder", sample, console, watcher.online)
        quality |= watcher.measure("pretrained encoder", self.module.objective)
        objective, device, autocast_dtype = self.module.objective, self.machine.device, self.machine.autocast_dtype
        with stage(console, "measuring the objective"):
            measured = measure_objective(objective, images, device=str(device), autocast_dtype=autocast_dtype)
        self._export(folder)
        results = {
            "recipe": self._recipe(),
            "seconds": round(self.loop.seconds, 1),
            "scores": [score.as_dict() for score in scores],
            "quality": {name: found.as_dict() for name, found in quality.items()},
            "objective": measured,
            "skipped_images": [str(path) for path in self.data.skipped],
            "value_range": self.data.value_range,
            "bits": what_bits_depend_on(self.machine),
        }
        write_results(folder, results)
        write_card(folder)
        # last: what cannot be drawn must cost nothing
        figures = self._draw(folder, scores, console) if self.config.trainer.figures else []
        seal(folder, figures if self.config.trainer.figures else None)
        seconds = self.loop.seconds
        print_report(console, self.config, scores, figures, seconds=seconds, quality=quality, measured=measured)
        if self.data.skipped:
            console.print(f"{len(self.data.skipped)} unreadable images were skipped, {self.data.skipped[0]} first")

    def _train(self, folder: Path, console: Console, loggers: "list[Logger]", watcher: "Watcher") -> None:
        from ssl_blocks.engine.fit import Record, fit
        from ssl_blocks.engine.progress import RichRunProgress

        settings = self.config.trainer
        record = Record(
            folder,
            f"go on with --resume {folder}",
            checkpoint_every=settings.checkpoint_every,
            keep=settings.keep_checkpoints,
            loggers=loggers,
        )
        progress = RichRunProgress(console, "pretraining", watcher.remark, every=settings.log_every)
        fit(self.loop, record=record, checkpoint=self.checkpoint, callbacks=[*watcher.callbacks, progress])

    def _draw(self, folder: Path, scores: list[Scores], console: Console) -> list[Path]:
        """Draw what there is to see; a picture that fails is one line."""
        from ssl_blocks.pretrain.figures import write_curves, write_features, write_figures

        objective, augment, figures = self.module.objective, self.module.augment, folder / "figures"
        pictures: dict[str, Callable[[], list[Path]]] = {
            type(objective).__name__: lambda: write_figures(objective, self.data, figures, augment),
            "features": lambda: write_features(objective, self.data, figures),
            "curves": lambda: [write_curves(folder, scores)],
        }
        if "csv" not in self.config.trainer.loggers:
            del pictures["curves"]
        drawn: list[Path] = []
        with stage(console, "drawing pictures"):
            for name, draw in pictures.items():
                try:
                    drawn += draw()
                except Exception as error:  # whatever it is, the run is done
                    reason = " ".join(str(error).split())
                    console.print(f"warning: no pictures of {name}: {type(error).__name__}: {reason}", soft_wrap=True)
        return drawn

    def _open(self, folder: Path, console: Console) -> None:
        for leftover in folder.rglob(f".*{TEMPORARY_SUFFIX}"):  # of a process that was killed while writing
            leftover.unlink(missing_ok=True)
        for unfinished in folder.glob(".encoder.*.incomplete"):
            shutil.rmtree(unfinished, ignore_errors=True)
        if not (folder / "config.yaml").is_file():
            with atomically(folder / "config.yaml") as temporary:
                temporary.write_text(yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False))
            return
        if self.checkpoint is None:
            console.print(f"{folder} has no checkpoint yet: starting from the beginning")
        else:
            console.print(
                f"going on from {self.checkpoint}, step {self.loop.resumed_step}/{self.module.plan.num_steps}"
            )
        epochs = self.config.trainer.epochs
        if (before := lengthen(folder, epochs)) is not None:
            console.print(
                f"note: {epochs} epochs instead of {before}: rates are those of a run of {epochs} from here on"
            )

    def _images_for_scores(self, console: Console) -> ImageData:
        """Images in memory: all that are there, or some of those that are in files."""
        if not self.data.is_streamed:
            return self.data.sample()
        settings = self.config.trainer
        with stage(console, "reading images for scores"):
            return self.data.sample(settings.score_bank or settings.knn_bank, NUM_TEST)

    def _sample(self, images: ImageData | None) -> Sample | None:
        """What scores look at; nothing where there are no labels."""
        if images is None or not has_labels(images):
            return None
        return Sample(images, autocast_dtype=self.machine.autocast_dtype)

    def _take_final_weights(self) -> None:
        """Have the trained objective in this process, whole and on CPU."""
        if self.machine.strategy != "fsdp":
            self.module.objective.to("cpu")
            return
        state = read_checkpoint(list_checkpoints(self.config.folder)[0])["state_dict"]
        self.module = PretrainModule(build(self.config, self.assemble, self.data), self.data, self.config)
        type(self.loop)(self.module).load_state_dict(state)

    def _score(
        self, name: str, sample: Sample | None, console: Console, knn: "OnlineScores | None" = None
    ) -> list[Scores]:
        """Score raw pixels or the encoder as it stands, which ends up on CPU; what kNN has just looked at is known."""
        settings, plan, device = self.config.trainer, self.module.plan, self.machine.device
        bank, images_seen = settings.score_bank, plan.num_steps * plan.batch_size
        if not settings.score or sample is None:
            return []
        part = sample.part(*num_scored(sample, bank, images_seen=images_seen))
        with stage(console, f"scoring {name} on {part}"):
            known = None if knn is None else knn.found(part, plan.num_steps)
            if name == "raw pixels":
                known = part.of_pixels()
            elif known is None:
                known = part.of_encoder(self.module.objective, device)
                self.module.objective.export_encoder().module.to("cpu")
            return [known.scores(name, device)]

    def _recipe(self) -> dict[str, Any]:
        """What the model card says of where the encoder comes from."""
        return {
            "name": type(self.config).__name__.removesuffix("Config"),
            "objective": type(self.module.objective).__name__,
            "train_images": len(self.data.train),
            "version": VERSION,
        }
