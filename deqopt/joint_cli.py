"""The subcommands fit, validate, test and predict, on LightningCLI."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from deqopt.adjoints import Adjoint
from deqopt.arguments import prepare
from deqopt.callbacks import FigureWriter, PredictionWriter, RunCheckpoint
from deqopt.errors import CheckpointError, DeqoptError
from deqopt.module import JointModule
from deqopt.solvers import JointSolver
from deqopt.task import Task


class JointCLI(LightningCLI):
    """LightningCLI for one JointModule: ``--task``, ``--solver`` and ``--adjoint`` choose its parts by name.

    A run is kept in ``<trainer.default_root_dir>/<task>/version_N``: config, metrics.csv, TensorBoard events,
    checkpoints, figures, predictions.
    """

    def __init__(self, words: Sequence[str]) -> None:
        subcommand_settings = {"exit_on_error": False}
        super().__init__(
            model_class=JointModule,
            trainer_defaults={
                "inference_mode": False,
                "default_root_dir": "runs",
                "callbacks": [FigureWriter(), PredictionWriter()],
            },
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={
                "prog": "deqopt",
                "description": "Trains and runs deep equilibrium networks whose input is optimised during inference. "
                "'deqopt tasks' and 'deqopt solvers' list what is installed.",
                "exit_on_error": False,
                **{name: dict(subcommand_settings) for name in self.subcommands()},
            },
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=prepare(words),
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        choices = (("task", Task, True), ("solver", JointSolver, False), ("adjoint", Adjoint, False))
        for name, kind, required in choices:
            parser.add_subclass_arguments(kind, name, required=required, instantiate=False)
            parser.link_arguments(name, f"model.{name}", apply_on="parse")
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        self.datamodule = self.model.task.datamodule()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        settings = self._get(self.config_init, "trainer")
        self._run_root = Path(settings["default_root_dir"]) / type(self.model.task).__name__.lower()
        if settings["logger"] in (None, True):
            csv = CSVLogger(self._run_root.parent, name=self._run_root.name)
            board = TensorBoardLogger(
                self._run_root.parent, name=self._run_root.name, version=csv.version, default_hp_metric=False
            )
            kwargs["logger"] = [csv, board]
        callbacks: list[Callback] = settings["callbacks"] or []
        if settings["enable_progress_bar"] in (None, True) and not any(
            isinstance(callback, RichProgressBar) for callback in callbacks
        ):
            settings["callbacks"] = [*callbacks, RichProgressBar(leave=True)]
        return super().instantiate_trainer(**kwargs)

    def _parse_ckpt_path(self) -> None:
        """The checkpoint's settings were already read by :func:`deqopt.arguments.prepare`."""

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        arguments = super()._prepare_subcommand_kwargs(subcommand)
        if "ckpt_path" in arguments:
            arguments["ckpt_path"] = self._checkpoint(arguments["ckpt_path"])
        arguments.pop("return_predictions", None)
        if subcommand == "predict":
            arguments["return_predictions"] = False
        return arguments

    def _checkpoint(self, name: str | None) -> str | None:
        """``last`` and ``best`` mean those of the newest run of this task that has one."""
        if name not in ("last", "best"):
            if name is not None and not Path(name).is_file():
                raise CheckpointError(f"no checkpoint {name}; give a path, or 'last' or 'best' for the newest run")
            return name
        found = list(self._run_root.glob(f"version_*/checkpoints/{name}.ckpt"))
        if not found:
            raise CheckpointError(f"no run below {self._run_root} has a checkpoint {name}.ckpt; give a path")
        return str(max(found, key=lambda path: path.stat().st_mtime))


def run(words: Sequence[str]) -> None:
    """Parse and run; what the parser, Lightning and the operating system complain of becomes a DeqoptError of one line."""
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    try:
        cli = JointCLI(words)
    except (ArgumentError, MisconfigurationException) as error:
        raise DeqoptError(one_line(error)) from error
    except SIGTERMException as error:
        raise SystemExit(143) from error
    directory = cli.trainer.log_dir  # broadcast, so all processes must ask for it
    if cli.trainer.is_global_zero and directory:
        print(f"This run is kept in {directory}")


def one_line(error: Exception) -> str:
    """The text of an error in one line."""
    return " ".join(str(error).split())
