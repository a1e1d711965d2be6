"""Three methods compared on the samples of the tiny task."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from deqopt import Equilibrium
from deqopt.callbacks.comparison import ComparisonReport
from deqopt.compare import Measure
from deqopt.solvers import Tracking
from reported import figures_of_test
from tiny_task import Batch, Tiny

ERROR, SECONDS = Measure("error", digits=4), Measure("seconds", "ms", 1000, 1, median=True)


def error(answer: Tensor, batch: Batch) -> dict[str, Tensor]:
    """NaN of sample 2."""
    found = (answer - batch["y"]).square().mean(1)
    return {"error": torch.where(batch["index"] == 2, torch.nan, found)}


class Compared(Tiny):
    """Three methods on the samples of `Tiny`, of which the first ones are met again at the end where ``repeated``."""

    def __init__(self, samples: int = 10, repeated: int = 0, most: int | None = None, **settings: Any) -> None:
        super().__init__(samples, **settings)
        self.repeated = repeated
        self.report = Noted("tiny things", [ERROR, SECONDS], error, self.ours, noun="things", most=most)

    def datamodule(self) -> Any:
        data = super().datamodule()
        data._samples += data._samples[: self.repeated]
        return data

    def ours(self, equilibrium: Equilibrium, batch: Batch) -> Tensor:
        assert isinstance(equilibrium.z, Tensor) and not torch.is_grad_enabled()
        return self.head(equilibrium.z)

    def callbacks(self) -> list[Callback]:
        return [self.report]

    def tested(self, directory: Path, **settings: Any) -> dict[str, float]:
        """The figures of a test."""
        return figures_of_test(self, Tracking(max_nfe=6), directory, **settings)

    def errors(self, *rows: int) -> dict[str, float]:
        """What the others should reach on these samples."""
        y = self.y[list(rows)]
        return {"error_zero": float(y.square().mean()), "error_slow_half": float((y / 2).square().mean())}


class Noted(ComparisonReport):
    """Says how many tests there were, and adds a method made of two others, and a fact."""

    tests = 0

    def methods(self, trainer: Trainer) -> Mapping[str, Any]:
        self.tests += 1
        return {"zero": lambda batch: torch.zeros_like(batch["y"]), "Slow-half": self.slow}

    @staticmethod
    def slow(batch: Batch) -> Tensor:
        time.sleep(0.02 * len(batch["y"]))
        return batch["y"] / 2

    def more(self, values: Any, equilibrium: Equilibrium, batch: Any) -> Any:
        assert len(equilibrium.x) == len(batch["y"]) == len(values["ours"]["error"])
        larger = torch.maximum(values["zero"]["error"], values["Slow-half"]["error"])
        return {"worst": {"error": larger}}, {"nfe": equilibrium.nfe}

    def notes(self) -> list[str]:
        return [f"Test {self.tests}, with a line that is longer than the screen is wide, so that it has to be broken"]
