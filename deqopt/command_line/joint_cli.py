"""The commands fit, validate, test and predict, on LightningCLI."""

from __future__ import annotations

import logging
import os
import warnings
from argparse import Action
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, DefaultHelpFormatter
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from deqopt.adjoints import Adjoint
from deqopt.callbacks import EndTogether, FigureWriter, Interruption, PredictionWriter, RunCheckpoint
from deqopt.checkpoints.plugin import VerifiedCheckpointIO
from deqopt.command_line.arguments import RUNS_ROOT, Invocation, read
from deqopt.command_line.checkpoints import run_folder
from deqopt.command_line.complaints import Complaints
from deqopt.command_line.explanations import explanation, threads_explained
from deqopt.command_line.markup import plain
from deqopt.command_line.names import CHOICES
from deqopt.command_line.nulls import refuse_nulls
from deqopt.command_line.run_folder import CSVInRunFolder, RunFolder, TensorBoardInRunFolder
from deqopt.command_line.vouched import vouched
from deqopt.errors import DeqoptError, printable
from deqopt.import_guard import guarded, refuse_code
from deqopt.module import JointModule
from deqopt.solvers import JointSolver
from deqopt.task import Task
from deqopt.trust import LIGHTNING, trusting

NOISE = (
    ".*LeafSpec.*",
    ".*does not have many workers.*",
    "The dirpath has changed from",
    "Be aware that when using `ckpt_path`, callbacks",
    "Image size .* exceeds limit",  # such an image is refused by name
)
"""Warnings of Lightning and PyTorch that a user can do nothing about."""

PURPOSES = {
    "fit": "Trains on the task's training data.",
    "validate": "Measures a trained network on the validation data.",
    "test": "Measures a trained network on the test data.",
    "predict": "Solves for data of your own, and writes what the task makes of it.",
}


TITLES = {
    "task": "What is solved",
    "solver": "How it is solved",
    "adjoint": "How gradients reach the parameters",
    "model": "How the parameters are trained",
    "checkpoint": "What is kept of a run",
    "trainer": "Lightning's trainer",
}
"""Headings in the help."""


class PlainHelp(DefaultHelpFormatter):
    """Help without the markup of docstrings."""

    def _expand_help(self, action: Action) -> str:
        return plain(super()._expand_help(action))


class JointParser(LightningArgumentParser):
    """A parser that raises its errors, takes no abbreviated options and shows plain help."""

    def __init__(self, **settings: Any) -> None:
        own = {"formatter_class": PlainHelp, "exit_on_error": False, "allow_abbrev": False}
        super().__init__(**{**own, **settings})


class JointCLI(LightningCLI):
    """LightningCLI for one JointModule: ``--task``, ``--solver`` and ``--adjoint`` choose its parts by name.

    A run is kept in ``<trainer.default_root_dir>/<task>/version_N``: config, metrics.csv, TensorBoard events,
    checkpoints, figures, predictions.
    """

    def __init__(self, invocation: Invocation) -> None:
        self._invocation = invocation
        super().__init__(
            model_class=JointModule,
            trainer_defaults={
                "inference_mode": False,
                "default_root_dir": RUNS_ROOT,
                "callbacks": [FigureWriter(), PredictionWriter(), EndTogether(), Interruption()],
            },
            save_config_kwargs={"overwrite": True},
            parser_kwargs={
                "prog": f"deqopt {invocation.command}",
                "usage": "%(prog)s --task NAME [--task.OPTION VALUE ...] [--config FILE ...] [OPTION VALUE ...]",
                "description": PURPOSES[invocation.command],
            },
            parser_class=JointParser,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            run=False,
            args=invocation.words,
        )

    def run(self) -> None:
        """Run the command."""
        command, settings = self._invocation.command, {"ckpt_path": self.config["ckpt_path"]}
        task = type(self.model.task)
        if command == "predict" and task.write_predictions is Task.write_predictions:
            raise DeqoptError(f"{task.__name__} does not define write_predictions(), which predict needs")
        if command != "fit" and settings["ckpt_path"] is None:
            rank_zero_warn(f"{command} without --ckpt_path: the network is new, nothing was learned")
        if self._invocation.remark:
            rank_zero_only(print)(self._invocation.remark)
        if command == "predict":
            settings["return_predictions"] = False
        getattr(self.trainer, command)(self.model, datamodule=self.datamodule, **settings)

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parts = (
            ("task", Task, True, "a name that 'deqopt tasks' lists, or a class path"),
            ("solver", JointSolver, False, "a name that 'deqopt solvers' lists, or a class path"),
            ("adjoint", Adjoint, False, "a name, or a class path"),
        )
        for name, kind, required, text in parts:
            text += f"; --{name}.help NAME shows its options"
            parser.add_subclass_arguments(kind, name, required=required, instantiate=False, metavar="NAME", help=text)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(JointModule, "model")
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        run = parser.add_argument_group("The run")
        run.add_argument(
            "--ckpt_path",
            type=str | None,
            help="checkpoint to go on from or to use: a path, or the newest last or best",
        )
        run.add_argument("--seed_everything", type=int, default=0, help="seed of all random numbers, 0 to 4294967295")
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.set_defaults({f"trainer.{k}": v for k, v in self.trainer_defaults.items() if k != "callbacks"})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for name in CHOICES:
            parser.link_arguments(name, f"model.{name}", apply_on="parse")
        groups = parser.groups or {}
        for name, title in TITLES.items():
            groups[name].title = title

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        options = [word.removeprefix("--") for action in parser._actions for word in action.option_strings]
        complaints = Complaints(options, self._invocation.place)
        try:
            self.config = parser.parse_args(args)
        except (ArgumentError, TypeError) as error:  # TypeError: help on a class of another kind
            raise DeqoptError(complaints.explain(str(error))) from error
        refuse_code(self.config)
        plain = self.config.as_dict()
        for choice in CHOICES:
            refuse_nulls(choice, plain[choice], complaints.named)

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        self.datamodule = self.model.task.datamodule()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        settings = self.config_init["trainer"]
        folder = run_folder(settings["default_root_dir"] or RUNS_ROOT, type(self.model.task).__name__)
        if settings["logger"] in (None, True):
            own = RunFolder(folder)
            kwargs["logger"] = [CSVInRunFolder(own), TensorBoardInRunFolder(own, default_hp_metric=False)]
            settings["callbacks"] = [own, *(settings["callbacks"] or [])]
        callbacks: list[Callback] = settings["callbacks"] or []
        if settings["enable_progress_bar"] in (None, True) and not any(
            isinstance(callback, RichProgressBar) for callback in callbacks
        ):
            settings["callbacks"] = [*callbacks, RichProgressBar(leave=True)]
        plugins = settings["plugins"] or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            settings["plugins"] = [*plugins, VerifiedCheckpointIO()]
        if settings["enable_checkpointing"] is False:
            self.parser.callback_keys.remove("checkpoint")
        trainer = super().instantiate_trainer(**kwargs)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EndTogether):
                callback.begin_early(trainer)
        return trainer

    def _parse_ckpt_path(self) -> None:
        """The checkpoint's settings were already read by :func:`deqopt.command_line.arguments.read`."""


def run(command: str, words: Sequence[str]) -> None:
    """Parse and run one of the commands; whatever the user can put right is raised as a DeqoptError of one line."""
    with warnings.catch_warnings(), threads_explained():
        for message in NOISE:
            warnings.filterwarnings("ignore", message=message)
        logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_tip)
        try:
            with trusting(*vouched(words, os.environ), command_line=True):
                invocation = read(command, words)
                with guarded(*LIGHTNING, *invocation.classes):
                    cli = JointCLI(invocation)
                cli.run()
        except Exception as error:
            text = explanation(error)
            if text is None:
                raise
            raise DeqoptError(text) from error
    directory = cli.trainer.log_dir  # broadcast, so all processes must ask for it
    if cli.trainer.is_global_zero and directory:
        print(f"This run is kept in {printable(directory)}")
        pictures = sorted(Path(directory).glob("figures/*.png"))
        if pictures:
            print("Its pictures: " + " ".join(map(printable, pictures)))


def _is_no_tip(record: logging.LogRecord) -> bool:
    return "Tip:" not in record.getMessage()
