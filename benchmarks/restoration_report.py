"""What ``python -m benchmarks.restoration`` has measured, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from matplotlib.figure import Figure

from benchmarks.timed import read_runs
from deqopt.figures import write_figure

REFERENCE = "envelope"
"""The method that the others are compared with."""

Run = Mapping[str, Any]
KeyT = TypeVar("KeyT", bound=Hashable)
Scene = tuple[str, str, int]
"""Setting, data and number of test images: what runs must share to be compared."""
Series = tuple[str, float]
"""Method and seconds: what runs of several seeds share."""
Scenes = Mapping[Scene, Mapping[Series, Sequence[Run]]]


def write(folder: Path, settings: Mapping[str, str], gradients: Mapping[str, str]) -> str:
    """Write ``restoration.png`` and ``results.md`` from all files of test runs in ``folder``; returns the table.

    Args:
        settings, gradients: their labels by name.
    """
    runs = [run for run in read_runs(folder) if run["part"] == "test"]
    if not runs:
        return f"no test runs in {folder}"
    by_scene = _grouped(runs, lambda run: (run["setting"], run["data"], run["images"]))
    scenes = {
        scene: _grouped(of_scene, lambda run: (run["method"], run["budget"])) for scene, of_scene in by_scene.items()
    }
    write_figure(_figure(scenes, settings, gradients), folder / "restoration.png")
    text = "\n".join(_table(scenes, settings, gradients))
    (folder / "results.md").write_text(text + "\n")
    return text


def _grouped(runs: Sequence[Run], key: Callable[[Run], KeyT]) -> dict[KeyT, list[Run]]:
    return {one: [run for run in runs if key(run) == one] for one in dict.fromkeys(map(key, runs))}


def _title(scene: Scene, settings: Mapping[str, str]) -> str:
    setting, data, images = scene
    return f"{settings[setting]}, {images} images of {data}"


def _table(scenes: Scenes, settings: Mapping[str, str], gradients: Mapping[str, str]) -> list[str]:
    """Means over seeds at the end of training, with the lowest and the highest; in front what was measured."""
    gain = f"over {gradients[REFERENCE]}"
    columns = ["setting", "gradient", "seconds", "steps", "PSNR in dB", gain, "SSIM", "backward", "seeds"]
    rows = [columns, ["---"] * len(columns)]
    for scene, series in scenes.items():
        title = _title(scene, settings)
        measurement = _measurement(series)
        psnr, ssim = f"{measurement['psnr']:.2f}", f"{measurement['ssim']:.3f}"
        rows.append([title, "measurement", "", "", psnr, "", ssim, "", ""])
        for (method, budget), runs in series.items():
            last = [run["marks"][-1] for run in runs]
            cells = [title, gradients[method], _mean(last, "seconds"), _mean(last, "steps"), _spread(last, "psnr", 2)]
            gain = "" if method == REFERENCE else _gain(runs, series.get((REFERENCE, budget), []))
            rows.append([*cells, gain, _spread(last, "ssim", 3), _backward(last), str(len(runs))])
    return [f"| {' | '.join(row)} |" for row in rows]


def _measurement(series: Mapping[Series, Sequence[Run]]) -> Mapping[str, float]:
    """PSNR and SSIM of the measurement, which is the same in all runs."""
    found: Mapping[str, float] = next(iter(series.values()))[0]["measurement"]
    return found


def _mean(marks: Sequence[Mapping[str, float]], name: str) -> str:
    return f"{np.mean([one[name] for one in marks]):.0f}"


def _spread(marks: Sequence[Mapping[str, float]], name: str, digits: int) -> str:
    values = [one[name] for one in marks]
    return f"{np.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _gain(runs: Sequence[Run], reference: Sequence[Run]) -> str:
    """The mean over the seeds that both have; empty where there are none."""
    known = {run["seed"]: run["marks"][-1]["psnr"] for run in reference}
    gains = [run["marks"][-1]["psnr"] - known[run["seed"]] for run in runs if run["seed"] in known]
    return f"{np.mean(gains):+.2f}" if gains else ""


def _backward(marks: Sequence[Mapping[str, Any]]) -> str:
    """How the linear systems were solved; empty for a gradient without any."""
    found = [one["backward"] for one in marks if one["backward"] is not None]
    if not found:
        return ""
    residual, products, unsolved = (
        float(np.mean([one[name] for one in found])) for name in ("residual", "products", "unsolved")
    )
    return f"{products:.0f} products, residual {residual:.1e}, {100 * unsolved:.0f} % unsolved"


def _figure(scenes: Scenes, settings: Mapping[str, str], gradients: Mapping[str, str]) -> Figure:
    """A panel a scene: the mean over seeds at every mark, and the range of the seeds."""
    figure = Figure(figsize=(5.5 * len(scenes), 4.2), layout="constrained")
    colours = {method: f"C{k}" for k, method in enumerate(gradients)}
    for axes, (scene, series) in zip(figure.subplots(1, len(scenes), squeeze=False)[0], scenes.items(), strict=True):
        longest = max(budget for _, budget in series)
        for (method, budget), runs in series.items():
            seconds = np.mean([[one["seconds"] for one in run["marks"]] for run in runs], axis=0)
            psnr = np.array([[one["psnr"] for one in run["marks"]] for run in runs])
            label = gradients[method] if budget == longest else None
            style = "-" if budget == longest else ":"
            axes.plot(seconds, psnr.mean(0), style, color=colours[method], marker="o", markersize=3, label=label)
            axes.fill_between(seconds, psnr.min(0), psnr.max(0), color=colours[method], alpha=0.15)
        axes.axhline(_measurement(series)["psnr"], color="grey", linestyle="--", linewidth=1, label="measurement")
        axes.set(xlabel="seconds of training, one core", ylabel="PSNR in dB", xlim=(0, None))
        shorter = "; dotted: shorter schedules" if len({budget for _, budget in series}) > 1 else ""
        axes.set_title(_title(scene, settings) + shorter, fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure
