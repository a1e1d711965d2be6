"""The callback that compares restorations of test images: the measurement, classical methods, ours, and others."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from deqopt.batch import size_of
from deqopt.callbacks.figures import figure_directory
from deqopt.data import unsigned
from deqopt.equilibrium import Equilibrium
from deqopt.errors import ProblemError
from deqopt.figures import image_rows, write_figure
from deqopt.ssim import ssim
from deqopt.tables import write_csv

from .baselines import Baseline, baselines_for, choose, psnr
from .data import RestorationBatch
from .inpainting import Inpainting
from .operator import MeasurementOperator

MEASUREMENT, OURS = "measurement", "ours"
COLUMNS = 8
"""The most images that the figure shows."""


class RestorationReport(Callback):
    """In test: restores the first test images by every method, logs, prints and draws what they reach.

    Logs ``test/psnr_<method>`` and ``test/ssim_<method>``, and for inpainting ``test/psnr_hidden_<method>``, that of
    the hidden pixels alone. The methods are ``measurement`` (``operator.estimate``), the classical ones that fit the
    operator, ``ours``, and the others; all see the same images, and what they yield is cut to [0, 1]. The table goes
    into ``figures/restorations.csv`` too, pictures into ``figures/test_restorations.png``. With several processes each
    restores its share.

    Args:
        data: its first validation images choose the settings of the classical methods.
        operator: measures the images.
        restore: ours: the restored images, (B, channels, H, W), of a solved batch.
        others: restorations of a batch by name, such as by the same model trained otherwise.
        images: the most test images that are restored, in all, and the most validation images.

    Raises:
        ProblemError: no image to compare, two methods of one name; when the test starts, no validation image.
    """

    def __init__(
        self,
        data: LightningDataModule,
        operator: MeasurementOperator,
        restore: Callable[[Equilibrium, RestorationBatch], Tensor],
        others: Mapping[str, Callable[[RestorationBatch], Tensor]] | None = None,
        images: int = 64,
    ) -> None:
        if images < 1:
            raise ProblemError(f"restorations are compared on at least one test image, got {images}")
        self._data, self._operator, self._restore = data, operator, restore
        self._others, self._images = dict(others or {}), images
        self._baselines = baselines_for(operator)
        self._results: list[Result] = []
        self._start(images)

    def _start(self, images: int) -> None:
        self._most, self._compared, self._began = images, 0, 0.0
        self._clean: list[Tensor] = []
        tallies = [
            Tally(MEASUREMENT),
            *(Tally(baseline.name, baseline.setting) for baseline in self._baselines),
            Tally(OURS),
            *map(Tally, self._others),
        ]
        keys = [_key(tally.method) for tally in tallies]
        for tally, key in zip(tallies, keys, strict=True):
            if keys.count(key) > 1:
                raise ProblemError(f"two restorations are called {tally.method!r}: give them names of their own")
        self._tallies = {tally.method: tally for tally in tallies}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        most = 1 if trainer.fast_dev_run else self._images  # type: ignore[attr-defined]
        batches = _first(self._data.val_dataloader(), most, pl_module.device)
        names = " and ".join(baseline.name for baseline in self._baselines)
        rank_zero_info(f"Choosing the settings of {names} on {sum(map(size_of, batches))} validation images")
        self._baselines = [choose(baseline, self._operator, batches).baseline for baseline in self._baselines]
        self._start(most)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._began = time.perf_counter()

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        whole: RestorationBatch = outputs["batch"]  # without samples that are not finite
        self._tallies[OURS].seconds.append((time.perf_counter() - self._began) / size_of(whole))
        share = self._most // trainer.world_size + (trainer.global_rank < self._most % trainer.world_size)
        count = min(share - self._compared, size_of(whole))
        if not count:
            return
        self._compared += count
        batch = RestorationBatch(*(part[:count] for part in whole))
        hidden = hidden_pixels(self._operator, batch)
        self._clean = [*self._clean, *batch.clean.cpu()][:COLUMNS]
        restored = {
            MEASUREMENT: unsigned(self._operator.bind(batch.parameters).estimate(batch.y)),
            OURS: self._restore(outputs["equilibrium"], whole)[:count],
        }
        for baseline in self._baselines:
            restored[baseline.name] = self._timed(baseline.name, batch, self._by(baseline))
        for name, other in self._others.items():
            restored[name] = self._timed(name, batch, other)
        for name, images in restored.items():
            self._tallies[name].add(images, batch.clean, hidden)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._results = []
        for tally in self._tallies.values():
            if trainer.world_size > 1:
                tally.sums = trainer.strategy.reduce(tally.sums.to(pl_module.device), reduce_op="sum")
            result = tally.result()
            self._results.append(result)
            for name, figure in result.figures().items():
                pl_module.log(f"test/{name}_{_key(result.method)}", figure, sync_dist=True)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        directory = figure_directory(trainer)
        rank_zero_info(table(self._results))
        if directory is None:
            return
        write_table(self._results, directory / "restorations.csv")
        rows = {"clean": torch.stack(self._clean)}
        rows |= {name: torch.stack(tally.pictures) for name, tally in self._tallies.items()}
        notes = [f"ours {value:.1f} dB" for value in psnr(rows[OURS], rows["clean"]).tolist()]
        title = f"{type(self._operator).__name__}: test images restored"
        write_figure(image_rows(rows, title, notes), directory / "test_restorations.png")

    def _by(self, baseline: Baseline) -> Callable[[RestorationBatch], Tensor]:
        return lambda batch: baseline.restore(self._operator, batch.y, batch.parameters)

    def _timed(self, name: str, batch: RestorationBatch, restore: Callable[[RestorationBatch], Tensor]) -> Tensor:
        began = time.perf_counter()
        images = restore(batch).cpu()  # waits for the device
        self._tallies[name].seconds.append((time.perf_counter() - began) / size_of(batch))
        return images


@dataclass(frozen=True)
class Result:
    """How well a method restores.

    Attributes:
        method: its name.
        setting: what was chosen for it on validation images.
        images: how many it restored.
        psnr: mean over the images, in dB; see :func:`psnr`.
        psnr_error: its standard error; NaN of a single image.
        ssim: mean; see :func:`ssim`.
        psnr_hidden: mean PSNR of the hidden pixels alone; None where there are none.
        seconds: an image, the median over the batches of the first process; ours is that of the whole test step. None
            where none were measured.
    """

    method: str
    setting: str
    images: int
    psnr: float
    psnr_error: float
    ssim: float
    psnr_hidden: float | None
    seconds: float | None

    def figures(self) -> dict[str, float]:
        """What is logged."""
        hidden = {} if self.psnr_hidden is None else {"psnr_hidden": self.psnr_hidden}
        return {"psnr": self.psnr, "ssim": self.ssim, **hidden}


class Tally:
    """Adds up what a method reaches, batch by batch, and keeps its first images.

    Attributes:
        sums: (6,) the number of images, the sums of PSNR, of its square and of SSIM, the number of images with hidden
            pixels, and the sum of their PSNR there.
        seconds: an image, of every batch.
        pictures: the first images.
    """

    def __init__(self, method: str, setting: str = "") -> None:
        self.method, self.setting = method, setting
        self.sums = torch.zeros(6, dtype=torch.float64)
        self.seconds: list[float] = []
        self.pictures: list[Tensor] = []

    def add(self, images: Tensor, clean: Tensor, hidden: Tensor) -> None:
        """Restored images, the clean ones, and which pixels were hidden, all (B, channels, H, W)."""
        images, clean, hidden = images.detach().float().cpu().clamp(0, 1), clean.float().cpu(), hidden.cpu()
        whole, similar = psnr(images, clean).double(), ssim(images, clean).double()
        inside = psnr(images, clean, hidden)[hidden.flatten(1).any(1)].double()
        sums = [whole.sum(), whole.square().sum(), similar.sum()]
        self.sums += torch.tensor([len(whole), *sums, len(inside), inside.sum()], dtype=torch.float64)
        self.pictures = [*self.pictures, *images][:COLUMNS]

    def result(self) -> Result:
        images, total, squares, similar, holes, inside = self.sums.tolist()
        mean = total / images
        variance = max(squares / images - mean**2, 0.0) / (images - 1) if images > 1 else math.nan
        return Result(
            method=self.method,
            setting=self.setting,
            images=int(images),
            psnr=mean,
            psnr_error=math.sqrt(variance),
            ssim=similar / images,
            psnr_hidden=inside / holes if holes else None,
            seconds=median(self.seconds) if self.seconds else None,
        )


def hidden_pixels(operator: MeasurementOperator, batch: RestorationBatch) -> Tensor:
    """Which pixels of the clean images inpainting hides, bools of their shape; of other operators none."""
    if not isinstance(operator, Inpainting):
        return torch.zeros_like(batch.clean, dtype=torch.bool)
    return operator.bind(batch.parameters).observed(torch.ones_like(batch.y)) == 0


def table(results: Sequence[Result]) -> str:
    """A readable table, a method a line."""
    holes = any(result.psnr_hidden is not None for result in results)
    rows = [["", "PSNR", "", "SSIM", *(["in the hole"] if holes else []), "s/image", ""]]
    for result in results:
        error = "" if math.isnan(result.psnr_error) else f"+- {result.psnr_error:.2f}"
        hole = [_shown(result.psnr_hidden, ".2f")] if holes else []
        seconds = _shown(result.seconds, ".4f")
        rows.append([result.method, f"{result.psnr:.2f}", error, f"{result.ssim:.3f}", *hole, seconds, result.setting])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"Restorations of {results[0].images} test images, PSNR in dB with its standard error"]
    for method, *cells, setting in rows:
        aligned = [method.ljust(widths[0]), *map(str.rjust, cells, widths[1:-1]), setting]
        lines.append("  ".join(aligned).rstrip())
    return "\n".join(lines)


def write_table(results: Sequence[Result], path: Path) -> None:
    """The same as CSV, a column for each attribute; an existing file is replaced only by a complete one."""
    columns = [field.name for field in fields(Result)]
    write_csv(columns, [list(asdict(result).values()) for result in results], path)


def _first(batches: Iterable[RestorationBatch], images: int, device: torch.device) -> list[RestorationBatch]:
    """The first images of a loader, on a device."""
    found: list[RestorationBatch] = []
    for batch in batches:
        found.append(RestorationBatch(*(part[:images].to(device) for part in batch)))
        images -= size_of(batch)
        if images <= 0:
            break
    return found


def _key(method: str) -> str:
    """The name of a method in what is logged."""
    return re.sub(r"\W+", "_", method.lower())


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
