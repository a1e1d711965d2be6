"""Comparing methods: each sample once, means with intervals, paired differences, tables, files and the picture."""

from __future__ import annotations

import csv
import math
import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from deqopt.compare import Estimate, Measure, Scores, Summary, check_names
from deqopt.errors import ProblemError
from deqopt.figures import comparison, draw_curves
from deqopt.tables import aligned, write_csv

ACCURACY = Measure("accuracy", "accuracy in %", factor=100)
NAN = math.nan

# -- estimates --------------------------------------------------------------------------------------------------------


def test_the_interval_of_many_samples_is_the_normal_one() -> None:
    """Half zeros and half ones: ``s = sqrt(n / (n - 1)) / 2``."""
    n = 10_000
    found = Estimate.of([0.0, 1.0] * (n // 2))
    assert found.mean == 0.5
    assert found.half_width == pytest.approx(1.96 * math.sqrt(n / (n - 1)) / 2 / math.sqrt(n), rel=2e-4)


@pytest.mark.parametrize("n", [3, 100])
def test_the_interval_holds_the_truth_in_95_percent(n: int) -> None:
    """Of normal values. With 1.96 for three it would be 81 %."""
    draws = torch.randn(2000, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = [Estimate.of(values) for values in draws]
    assert sum(abs(one.mean) <= one.half_width for one in found) / 2000 == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("values", [[0.75], [0.5, 0.5, 0.5], [0.5, NAN], []], ids=["one", "equal", "one known", "none"])
def test_what_says_nothing_of_other_samples_has_no_interval(values: list[float]) -> None:
    found = Estimate.of(values)
    assert math.isnan(found.half_width)
    assert math.isnan(found.mean) == (not values) and found.count + found.missing == len(values)


def test_scores_that_are_nan_are_counted_and_left_out() -> None:
    found = Estimate.of([1.0, NAN, 3.0, NAN, NAN])
    assert (found.mean, found.count, found.missing) == (2.0, 2, 3)
    assert found.half_width == pytest.approx(12.7062 * math.sqrt(2) / math.sqrt(2), rel=1e-5)


# -- each sample once -------------------------------------------------------------------------------------------------


def of(index: list[int], **values: list[float]) -> Scores:
    return Scores(index, {method: {"accuracy": scores} for method, scores in values.items()})


def test_a_sample_that_was_met_twice_counts_once() -> None:
    """The first meeting counts, whatever the later one says."""
    whole = Scores.joined([of([4, 1], ours=[0.4, 0.1]), of([3, 4, 1], ours=[0.3, 9.0, 9.0]), of([3], ours=[9.0])])
    assert whole.index.tolist() == [1, 3, 4]
    assert whole.values["ours"]["accuracy"].tolist() == [0.1, 0.3, 0.4]


def test_what_only_some_parts_have_is_missing_for_the_samples_of_the_others() -> None:
    both = Scores.joined([Scores([], {}), of([0], ours=[1.0]), of([1], ours=[3.0], theirs=[5.0])])
    found = Summary(both, [ACCURACY]).means
    assert (found["ours"]["accuracy"].mean, found["ours"]["accuracy"].missing) == (2.0, 0)
    assert (found["theirs"]["accuracy"].mean, found["theirs"]["accuracy"].missing) == (5.0, 1)


def share(rank: int, processes: int, samples: int) -> list[Scores]:
    """What a process of several meets, in batches of two: padded at the end, as a distributed sampler does."""
    padded = -(-samples // processes) * processes
    mine = [number % samples for number in range(rank, padded, processes)]
    batches = [mine[start : start + 2] for start in range(0, len(mine), 2)]
    return [
        of(batch, ours=[n / 7 for n in batch], theirs=[NAN if n == 3 else n**2 / 9 for n in batch]) for batch in batches
    ]


def gather(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        for samples in (1, 5, 8):
            mine = share(rank, 2, samples) if samples > 1 or rank == 0 else []  # one sample: the second meets nothing
            torch.save(Scores.joined(mine).gathered(), f"{folder}/{samples}_{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_gather_what_one_has(tmp_path: Path) -> None:
    """Five samples are padded to six, so that both meet one of them."""
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=gather, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    for samples in (1, 5, 8):
        alone = Scores.joined(share(0, 1, samples)).gathered()
        assert len(alone) == samples
        for rank in range(2):
            found = torch.load(tmp_path / f"{samples}_{rank}.pt", weights_only=False)
            assert found.rows() == alone.rows()
            assert Summary(found, [ACCURACY]).rows() == Summary(alone, [ACCURACY]).rows()


# -- differences ------------------------------------------------------------------------------------------------------


def test_paired_differences_are_known_better_than_scores_that_go_together() -> None:
    """Samples are hard or easy for both methods; theirs is right 5 % less often in every second one."""
    hard = torch.rand(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theirs = hard - 0.05 * (torch.arange(100) % 2)
    scores = Scores(range(100), {"ours": {"accuracy": hard}, "theirs": {"accuracy": theirs}})
    summary = Summary(scores, [ACCURACY])
    difference = summary.differences["theirs"]["accuracy"]
    assert difference.mean == pytest.approx(-0.025)
    assert difference.half_width == pytest.approx(1.9842 * 0.025 * math.sqrt(100 / 99) / 10, rel=1e-4)
    ours, own = (summary.means[method]["accuracy"].half_width for method in ("ours", "theirs"))
    assert difference.half_width < 0.1 * math.hypot(ours, own)
    assert "ours" not in summary.differences
    assert scores.difference("ours", "accuracy", first="theirs").mean == pytest.approx(0.025)


def test_a_sample_that_either_method_lacks_is_in_no_difference() -> None:
    scores = of([0, 1, 2, 3], ours=[1.0, NAN, 3.0, 4.0], theirs=[2.0, 2.0, 5.0, NAN])
    found = Summary(scores, [ACCURACY]).differences["theirs"]["accuracy"]
    assert (found.mean, found.count, found.missing) == (1.5, 2, 2)


# -- what is logged, shown and written --------------------------------------------------------------------------------

PSNR, SECONDS = Measure("psnr", "PSNR in dB"), Measure("seconds", "ms/image", factor=1000, digits=1, median=True)


def some() -> Scores:
    return Scores(
        [0, 1, 2, 3],
        {
            "ours": {"psnr": [20.0, 22.0, 24.0, 26.0], "seconds": [0.1, 0.2, 0.4, 0.9]},
            "Slow-MAML": {"psnr": [21.0, 21.0, NAN, 25.0]},
        },
    )


def test_means_are_logged_by_metric_and_method() -> None:
    assert Summary(some(), [PSNR, SECONDS]).logged() == {"psnr_ours": 23.0, "psnr_slow_maml": pytest.approx(67 / 3)}


def test_the_table_says_what_is_missing() -> None:
    assert Summary(some(), [PSNR, SECONDS], "images").table().splitlines() == [
        "            PSNR in dB   minus ours  ms/image",
        "ours       23.00 ±4.11                  300.0",
        "Slow-MAML  22.33 ±5.74  -0.33 ±2.87",
        "Note: PSNR in dB of Slow-MAML has no value for 1 of 4 images, which are left out",
        "of the mean",
    ]


def test_what_all_methods_lack_is_said_once() -> None:
    scores = of([0, 1, 2], ours=[1.0, 2.0, NAN], theirs=[1.0, 4.0, NAN])
    note = Summary(scores, [ACCURACY]).table().splitlines()[-2:]
    assert note[0].startswith("Note: accuracy in % has no value for 1 of 3 samples")


def test_a_single_sample_has_no_interval() -> None:
    table = Summary(of([7], ours=[0.75], theirs=[0.5]), [ACCURACY]).table()
    assert "±" not in table and "nan" not in table and "75.00" in table and "-25.00" in table


@pytest.mark.parametrize("methods", [1, 6])
@pytest.mark.parametrize("length", [4, 300])
def test_no_line_of_a_table_is_longer_than_the_screen(methods: int, length: int) -> None:
    names = [f"{k} {'/very/long' * (length // 10)}" for k in range(methods)]
    metrics = ["psnr", "ssim", "psnr of the pixels that are hidden by the largest of all holes", "loss"]
    values = {name: {metric: [1000.5 + k, 2000.0] for metric in metrics} for k, name in enumerate(names)}
    table = Summary(Scores([0, 1], values), [Measure(metric) for metric in metrics]).table()
    assert max(map(len, table.splitlines())) <= 80
    assert all(word in table for metric in metrics for word in metric.split()) and table.count("1500.25") == 4
    left = "".join(line[:30].strip() for line in table.splitlines())
    assert all(name.replace(" ", "") in left.replace(" ", "") for name in names), "no letter of a name is lost"


def test_the_rows_hold_every_interval(tmp_path: Path) -> None:
    Summary(some(), [PSNR, SECONDS], "images").write(tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open() as file:
        ours, theirs = csv.DictReader(file)
    assert list(ours) == [
        "method",
        "psnr",
        "psnr_half_width",
        "psnr_minus_ours",
        "psnr_minus_ours_half_width",
        "psnr_missing",
        "seconds",
        "images",
    ]
    assert (ours["psnr"], ours["psnr_minus_ours"], ours["psnr_missing"], ours["images"]) == ("23.0", "", "0", "4")
    assert float(ours["seconds"]) == pytest.approx(0.3) and theirs["seconds"] == ""
    assert float(theirs["psnr_minus_ours"]) == pytest.approx(-1 / 3) and theirs["psnr_missing"] == "1"
    assert float(theirs["psnr_minus_ours_half_width"]) == pytest.approx(4.30265 * math.sqrt(4 / 3) / math.sqrt(3))


def test_the_samples_are_rows_too() -> None:
    columns, rows = some().rows()
    assert columns == ["index", "psnr_ours", "seconds_ours", "psnr_slow_maml"]
    assert rows[0] == [0, 20.0, 0.1, 21.0] and rows[2] == [2, 24.0, 0.4, ""]


# -- the picture ------------------------------------------------------------------------------------------------------


def colours(figure: Figure) -> set[tuple[int, ...]]:
    """The colours of the pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].reshape(-1, 3)
    return {tuple(map(int, one)) for one in pixels}


def colour(line: int) -> tuple[int, ...]:
    from matplotlib.colors import to_rgb

    return tuple(round(255 * part) for part in to_rgb(f"C{line}"))


@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0], [2.0, 2.0, 2.0], [2.0]], ids=["spread", "equal", "one sample"])
def test_methods_that_coincide_are_all_visible(values: list[float]) -> None:
    scores = of(list(range(len(values))), ours=values, twin=values, third=values)
    seen = colours(comparison(Summary(scores, [ACCURACY]), "three of the same"))
    assert all(colour(line) in seen for line in range(3))


@pytest.mark.parametrize("spread", [0.0, NAN, 1.0])
def test_curves_that_coincide_are_all_visible(spread: float) -> None:
    figure = Figure()
    points = {0.0: Estimate(1.0, spread, 5), 1.0: Estimate(2.0, spread, 5)}
    draw_curves(figure.subplots(), {"one": points, "$two": points, "three": {1.0: points[1.0]}}, ACCURACY)
    assert {colour(place) for place in range(3)} <= colours(figure)


def test_intervals_are_drawn_within_the_bounds_of_the_score() -> None:
    share = Measure("accuracy", factor=100, bounds=(0, 1))
    assert share.drawn(Estimate(0.1, 0.3, 5)) == (10.0, pytest.approx([10.0, 30.0]))
    assert share.drawn(Estimate(0.9, 0.3, 5)) == (90.0, pytest.approx([30.0, 10.0]))
    assert ACCURACY.drawn(Estimate(0.9, 0.3, 5)) == (90.0, pytest.approx([30.0, 30.0]))
    assert share.drawn(Estimate(1.0, NAN, 1)) == (100.0, [0.0, 0.0])


def test_a_method_without_a_score_and_signs_of_mathematics_are_drawn() -> None:
    scores = Scores([0, 1], {"a $b": {"psnr": [1.0, NAN], "loss": [NAN, NAN]}, "c_$d$^": {"psnr": [1.0, 2.0]}})
    figure = comparison(Summary(scores, [PSNR, Measure("loss", "$"), SECONDS]), "100 $ or more $^")
    assert len(figure.axes) == 2 and colour(1) in colours(figure)


# -- complaints -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [["ours", "Ours"], ["ours", "MAML 1", "maml-1"]])
def test_methods_of_one_name_are_refused(names: list[str]) -> None:
    for refused in (lambda: check_names(names), lambda: Scores([0], {name: {"psnr": [1.0]} for name in names})):
        with pytest.raises(ProblemError, match=rf"two methods are called '{names[-2]}': give them names of their own"):
            refused()


@pytest.mark.parametrize("values", [[1.0], [[1.0], [2.0]], 1.0], ids=["too few", "a column", "one number"])
def test_scores_that_are_not_one_a_sample_are_refused(values: list[float]) -> None:
    with pytest.raises(ProblemError, match=r"psnr of 'ours' must be one number a sample, \(2,\), and has shape"):
        Scores([0, 1], {"ours": {"psnr": values}})


# -- tables and CSV files ---------------------------------------------------------------------------------------------


def test_first_columns_are_aligned_to_the_left_and_the_others_to_the_right() -> None:
    rows = [["", "PSNR", "", ""], ["ours", "20.5", "+- 0.25", ""], ["much longer", "7", "", "note"]]
    assert aligned(rows).splitlines() == [
        "             PSNR",
        "ours         20.5  +- 0.25",
        "much longer     7           note",
    ]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    rows = [["a,b", 1.5, ""], ['say "é"', 0.1 + 0.2, None]]
    path = tmp_path / "new" / "table.csv"
    write_csv(["name", "value", "empty"], rows, path)
    with path.open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [
            ["name", "value", "empty"],
            ["a,b", "1.5", ""],
            ['say "é"', "0.30000000000000004", ""],
        ]
    assert list(path.parent.iterdir()) == [path]


def test_a_table_that_breaks_off_leaves_the_old_one(tmp_path: Path) -> None:
    def broken() -> Iterator[list[str]]:
        yield ["first"]
        raise OSError("No space left on device")

    path = tmp_path / "table.csv"
    write_csv(["name"], [["old"]], path)
    before = path.read_bytes()
    with pytest.raises(OSError, match="No space left"):
        write_csv(["name"], broken(), path)
    assert path.read_bytes() == before
