"""The callback that compares restorations of test images: ours, the measurement, classical methods, other models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from deqopt.batch import size_of
from deqopt.callbacks.comparison import OURS, Answers, ComparisonReport
from deqopt.compare import Measure, Summary, check_names
from deqopt.data import unsigned
from deqopt.equilibrium import Equilibrium
from deqopt.figures import image_rows, write_figure
from deqopt.image_quality import IMAGE_MEASURES, image_scores, psnr

from .baselines import Baseline, baselines_for, choose
from .data import RestorationBatch
from .inpainting import Inpainting
from .operator import MeasurementOperator

MEASUREMENT = "measurement"
COLUMNS = 8
"""The largest number of images in the picture."""


class RestorationReport(ComparisonReport):
    """In test: restores the first test images by every method, see `ComparisonReport`.

    The metrics are ``psnr`` and ``ssim``, for inpainting also ``psnr_hidden``, the PSNR of the hidden pixels alone. The
    methods are ours, ``measurement`` (``operator.estimate``), the classical methods that fit the operator, and other
    models. All restored images are clipped to [0, 1]. The files are ``figures/restorations.*``,
    ``figures/images.csv``, and ``figures/test_restorations.png`` with the first images.

    Args:
        data: data of the test; the settings of the classical methods are chosen on its first validation images.
        operator: operator that measures the images.
        restore: function that returns our restored images, (B, channels, H, W), for a solved batch.
        others: restorations by other models, by name, such as the same model trained in another way.
        images: largest total number of test images that are restored, and of validation images.

    Raises:
        ProblemError: there is no image to compare, or two methods have the same name; when the test starts, there is no
            validation image.
    """

    def __init__(
        self,
        data: LightningDataModule,
        operator: MeasurementOperator,
        restore: Callable[[Equilibrium, RestorationBatch], Tensor],
        others: Mapping[str, Callable[[RestorationBatch], Tensor]] | None = None,
        images: int = 64,
    ) -> None:
        holes = [Measure("psnr_hidden", "PSNR in the hole")] if isinstance(operator, Inpainting) else []
        quality, seconds = IMAGE_MEASURES[:-1], IMAGE_MEASURES[-1:]
        super().__init__(
            "restorations", [*quality, *holes, *seconds], self._scores, restore, others, noun="images", most=images
        )
        self._data, self._operator, self._images = data, operator, images
        self._baselines = baselines_for(operator)
        self._pictures: dict[str, Tensor] = {}
        check_names([OURS, MEASUREMENT, *(one.name for one in self._baselines), *(others or {})])

    def methods(self, trainer: Trainer) -> Mapping[str, Callable[[RestorationBatch], Tensor]]:
        self._pictures = {}
        most = 1 if trainer.fast_dev_run else self._images  # type: ignore[attr-defined]
        batches = _first(self._data.val_dataloader(), most, trainer.strategy.root_device)
        names = " and ".join(one.name for one in self._baselines)
        rank_zero_info(f"Choosing the settings of {names} on {sum(map(size_of, batches))} validation images")
        self._baselines = [choose(one, self._operator, batches).baseline for one in self._baselines]
        return {
            MEASUREMENT: lambda batch: unsigned(self._operator.bind(batch.parameters).estimate(batch.y)),
            **{one.name: partial(self._restored, one) for one in self._baselines},
            **super().methods(trainer),
        }

    def answered(self, answers: Answers, batch: RestorationBatch) -> None:
        for name, images in {"clean": batch.clean, **answers}.items():
            shown = [self._pictures[name]] if name in self._pictures else []
            self._pictures[name] = torch.cat([*shown, images.detach().float().cpu().clamp(0, 1)])[:COLUMNS]

    def summary(self) -> Summary:
        settings = {one.name: one.setting for one in self._baselines}
        return Summary(self.scores, self.measures, self.noun, {"setting": settings})

    def title(self) -> str:
        return f"{super().title()}, {type(self._operator).__name__}"

    def write(self, directory: Path) -> None:
        super().write(directory)
        notes = [f"ours {value:.1f} dB" for value in psnr(self._pictures[OURS], self._pictures["clean"]).tolist()]
        title = f"{type(self._operator).__name__}: test images restored"
        order = ["clean", MEASUREMENT, *(one.name for one in self._baselines), OURS, *self.others]
        rows = {name: self._pictures[name] for name in order}
        write_figure(image_rows(rows, title, notes), directory / "test_restorations.png")

    def _restored(self, baseline: Baseline, batch: RestorationBatch) -> Tensor:
        return baseline.restore(self._operator, batch.y, batch.parameters)

    def _scores(self, images: Tensor, batch: RestorationBatch) -> dict[str, Tensor]:
        images, clean = images.detach().float().cpu().clamp(0, 1), batch.clean.float().cpu()
        scores = image_scores(images, clean)
        if isinstance(self._operator, Inpainting):
            scores["psnr_hidden"] = psnr(images, clean, hidden_pixels(self._operator, batch).cpu())
        return scores


def hidden_pixels(operator: Inpainting, batch: RestorationBatch) -> Tensor:
    """The pixels of the clean images that inpainting hides, as bools of the same shape."""
    return operator.bind(batch.parameters).observed(torch.ones_like(batch.y)) == 0


def _first(batches: Iterable[RestorationBatch], images: int, device: torch.device) -> list[RestorationBatch]:
    """The first images of a loader, on a device."""
    found: list[RestorationBatch] = []
    for batch in batches:
        found.append(RestorationBatch(*(part[:images].to(device) for part in batch)))
        images -= size_of(batch)
        if images <= 0:
            break
    return found
