"""A user's own episode: how folders are read and refused, what is written of them, and how it is drawn."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from deqopt_tasks.omniglot import prediction
from deqopt_tasks.omniglot.episodes import EpisodeBatch
from deqopt_tasks.omniglot.prediction import FolderEpisode, JoinClasses, classified_directory, write_classes
from lightning.pytorch import Callback
from PIL import Image
from torch import Tensor

from deqopt import Equilibrium, JointModule
from deqopt.callbacks import PredictionWriter, ReportUnreadable
from deqopt.errors import DataError
from deqopt.solvers import JointAnderson, StepRule
from processes import python
from reported import table
from tiny_episodes import TinyEpisodes
from tiny_task import quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")
COLOURS = ["blue", "green", "red"]
Files = Mapping[str, tuple[int, ...] | bytes]


def write(folder: Path, files: Files) -> Path:
    """Images of one colour by their paths; bytes are what is in a file that is no image."""
    for name, colour in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(colour, bytes):
            path.write_bytes(colour)
        else:
            Image.new("RGB", (6, 4), colour).save(path)
    return folder


SUPPORT_FILES: Files = {
    "red/1.png": (255, 0, 0),
    "red/more/2.png": (200, 0, 0),
    "green/a.png": (0, 255, 0),
    "blue/b.png": (0, 0, 255),
    "blue/c.png": (0, 0, 180),
    "blue/d.png": (0, 0, 220),
}
ASKED = {  # sorted
    "b.png": ((0, 30, 230), "blue"),
    "c.png": ((240, 20, 10), "red"),
    "d.png": ((20, 20, 250), "blue"),
    "sub/a.png": ((10, 240, 5), "green"),
    "z.png": ((250, 10, 0), "red"),
}
QUERY: Files = {name: colour for name, (colour, _) in ASKED.items()}
TRUTH = {name: truth for name, (_, truth) in ASKED.items()}


def by_colour(batch: EpisodeBatch) -> Tensor:
    """(B, Q, ways): softmax of minus the distance to the mean colour of every class."""
    support, query = (images.mean((3, 4)) for images in (batch.support, batch.query))
    ways = int(batch.support_label.max()) + 1
    centres = [support[0, batch.support_label[0] == k].mean(0) for k in range(ways)]
    return (-5 * torch.cdist(query[0], torch.stack(centres))).softmax(1)[None]


class Colours(TinyEpisodes):
    """Classifies a user's images by their mean colour.

    Args:
        chunk: of queries.
        broken: a chunk that cannot be solved.
    """

    def __init__(self, folder: Path, chunk: int = 64, broken: int | None = None) -> None:
        self.episode = FolderEpisode(folder / "support", folder / "query", 4, 3, chunk)
        super().__init__(self.episode)
        self.directory, self.broken = classified_directory(folder / "query"), broken

    def callbacks(self) -> list[Callback]:
        return [ReportUnreadable(lambda: self.episode.queries, "classified"), JoinClasses()]

    def prediction_directory(self) -> Path:
        return self.directory

    def write_predictions(self, equilibrium: Equilibrium, batch: EpisodeBatch, directory: Path) -> list[Path]:
        if int(batch.index) == self.broken:
            raise RuntimeError("the third chunk breaks")
        return write_classes(batch, by_colour(batch), self.episode.files, self.episode.class_names, directory)


def predict(folder: Path, chunk: int = 64, broken: int | None = None, **settings: Any) -> Path:
    """Where it is written."""
    task = Colours(folder, chunk, broken)
    module = JointModule(task, solver=JointAnderson(max_nfe=10, step_size=0.1, step_rule=StepRule.PLAIN))
    trainer = quiet_trainer(folder, callbacks=[PredictionWriter()], **settings)
    trainer.predict(module, datamodule=task.datamodule(), return_predictions=False)
    return task.directory


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "support", SUPPORT_FILES)
    write(tmp_path / "query", QUERY)
    return tmp_path


def rows(directory: Path) -> list[dict[str, str]]:
    return table(directory / "predictions.csv")


def test_every_query_has_its_class_and_all_probabilities(folder: Path) -> None:
    directory = predict(folder)
    assert directory == folder / "query_classified"
    found = rows(directory)
    assert {row["file"]: row["class"] for row in found} == TRUTH and [row["file"] for row in found] == list(TRUTH)
    (batch,) = Colours(folder).datamodule().predict_dataloader()
    for row, shares in zip(found, by_colour(batch)[0].tolist(), strict=True):
        assert list(row) == ["file", "class", "probability", "p(blue)", "p(green)", "p(red)"]
        assert [float(row[f"p({name})"]) for name in COLOURS] == pytest.approx(shares, abs=1e-6)
        assert row["probability"] == max(row[f"p({name})"] for name in COLOURS)
    assert sorted(path.name for path in directory.iterdir()) == ["episode.png", "predictions.csv"]


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_chunks_do_not_change_what_is_found(chunk: int, folder: Path) -> None:
    whole = (predict(folder) / "predictions.csv").read_bytes()
    directory = predict(folder, chunk)
    assert (directory / "predictions.csv").read_bytes() == whole
    assert sorted(path.name for path in directory.iterdir()) == ["episode.png", "predictions.csv"]


def test_the_figure_is_of_the_first_chunk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[EpisodeBatch] = []
    plain = prediction.episode_figure
    monkeypatch.setattr(
        prediction, "episode_figure", lambda batch, *rest: (drawn.append(batch), plain(batch, *rest))[1]
    )
    directory = predict(folder, 2)
    (batch,) = drawn
    torch.testing.assert_close(batch.query[0, :, 2, 0, 0], torch.tensor([230, 10]) / 255)  # of b.png and c.png
    with Image.open(directory / "episode.png") as image:
        image.verify()


def test_a_second_run_replaces_the_first(folder: Path) -> None:
    predict(folder, 2)
    (folder / "query" / "b.png").unlink()
    assert {row["file"]: row["class"] for row in rows(predict(folder, 1))} == {
        name: truth for name, truth in TRUTH.items() if name != "b.png"
    }


def test_a_run_that_fails_leaves_the_old_predictions_and_the_next_one_none_of_it(folder: Path) -> None:
    with pytest.raises(RuntimeError, match="third chunk breaks"):
        predict(folder, 1, broken=2)
    path = folder / "query_classified" / "predictions.csv"
    assert not path.exists()
    predict(folder)
    before = path.read_bytes()
    write(folder / "query", {"a.png": (0, 255, 0)})
    with pytest.raises(RuntimeError, match="third chunk breaks"):
        predict(folder, 1, broken=2)
    assert path.read_bytes() == before
    (folder / "query" / "a.png").unlink()
    assert (predict(folder, 5) / "predictions.csv").read_bytes() == before
    assert len(list(path.parent.iterdir())) == 2


def test_names_of_classes_and_files_are_written_as_they_are(tmp_path: Path) -> None:
    names = {"class": (255, 0, 0), 'a "b", c': (0, 255, 0), "$é$": (0, 0, 255)}
    write(tmp_path / "support", {f"{name}/1.png": colour for name, colour in names.items()})
    write(tmp_path / "query", {f"of {name}, it is.png": colour for name, colour in names.items()})
    found = rows(predict(tmp_path))
    assert {row["file"]: row["class"] for row in found} == {f"of {name}, it is.png": name for name in names}
    assert set(found[0]) == {"file", "class", "probability", *(f"p({name})" for name in names)}


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text on this system")
def test_names_of_files_that_are_no_text_are_written_as_they_are(folder: Path) -> None:
    os.rename(folder / "query" / "b.png", os.fsencode(folder / "query") + b"/\xff.png")
    raw = (predict(folder) / "predictions.csv").read_bytes()
    assert b"\n\xff.png,blue," in raw


@pytest.mark.parametrize("given", ["query", "./query/", "query/../query", "."])
def test_the_folder_for_predictions_is_beside_the_queries(given: str, folder: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(folder / "query" if given == "." else folder)
    assert classified_directory(given) == folder / "query_classified"


def test_chunks_share_the_support_and_cut_the_queries(folder: Path) -> None:
    episode = FolderEpisode(folder / "support", folder / "query", 4, 3, chunk=2)
    assert episode.class_names == ["blue", "green", "red"] and len(episode) == 3 and len(episode.queries.readable) == 5
    assert [episode.files(i) for i in range(3)] == [["b.png", "c.png"], ["d.png", "sub/a.png"], ["z.png"]]
    (first, _, last) = (episode[i] for i in range(3))
    assert torch.equal(first.support, last.support)
    assert first.support_label.tolist() == [0, 0, 0, 1, 2, 2] and last.query_label.tolist() == [-1]
    levels = first.support.mean((2, 3)) * 255
    torch.testing.assert_close(levels[:, 2], torch.tensor([255.0, 180, 220, 0, 0, 0]))
    torch.testing.assert_close(last.query[0, :, 0, 0] * 255, torch.tensor([250.0, 10, 0]))
    with pytest.raises(IndexError):
        _ = episode[3]


def test_by_default_64_queries_make_a_chunk(tmp_path: Path) -> None:
    write(tmp_path / "support", SUPPORT_FILES)
    write(tmp_path / "query", {f"{i}.png": (i, i, i) for i in range(65)})
    episode = FolderEpisode(str(tmp_path / "support"), str(tmp_path / "query"), 2, 1)
    assert [len(episode[i].query) for i in range(len(episode))] == [64, 1]
    assert episode[0].query.shape[1:] == (1, 2, 2) and episode[0].support.shape == (6, 1, 2, 2)


def test_queries_that_cannot_be_read_are_left_out_and_fail_the_command(folder: Path) -> None:
    write(folder / "query", {"bad.png": b"nothing", "sub/worse.png": b"", "a.png": (0, 0, 255)})
    root = folder / "query"
    expected = f"2 of 8 images of {root} could not be read: bad.png, sub/worse.png; the other 6 were classified"
    with pytest.warns(UserWarning) as warned, pytest.raises(DataError, match=f"^{re.escape(expected)}$"):
        predict(folder, 2)
    reasons = [
        f"{root}/{file} is truncated or not an image: delete or replace it" for file in ("bad.png", "sub/worse.png")
    ]
    assert [str(one.message) for one in warned if str(root) in str(one.message)] == reasons
    assert {row["file"]: row["class"] for row in rows(folder / "query_classified")} == {**TRUTH, "a.png": "blue"}


LAYOUT = "the support folder should have a folder of images for every class"
BROKEN = r"\S+/a\.png is truncated or not an image: delete or replace it"
REFUSED: dict[str, tuple[Files, Files, str]] = {
    "no support": ({}, QUERY, rf"\S+/support is missing: {LAYOUT}"),
    "no query": (SUPPORT_FILES, {}, r"\S+/query is missing: it should be a folder of images"),
    "images in the support folder": (
        {**SUPPORT_FILES, "x.png": (0, 0, 0)},
        QUERY,
        rf"\S+/support/x\.png is in no class folder: {LAYOUT}",
    ),
    "a class without images": (
        {**SUPPORT_FILES, "yellow/readme.txt": b"", "white/readme.txt": b""},
        QUERY,
        r"\S+/support has class folders without images: white, yellow; fill or delete them",
    ),
    "one class": (
        {"red/1.png": (0, 0, 0)},
        QUERY,
        rf"\S+/support has a single class folder, red: {LAYOUT}, and two classes or more",
    ),
    "a class whose only image is broken": (
        {**SUPPORT_FILES, "green/a.png": b"nothing"},
        QUERY,
        rf"none of the images of \S+/support/green can be read: {LAYOUT}",
    ),
    "no readable query": (
        SUPPORT_FILES,
        {"a.png": b"", "b.png": b""},
        rf"none of the 2 images of \S+/query can be read: {BROKEN}",
    ),
}


@pytest.mark.filterwarnings("ignore:.*is truncated or not an image")
@pytest.mark.parametrize("case", REFUSED)
def test_folders_that_make_no_episode_are_refused(case: str, tmp_path: Path) -> None:
    support, query, pattern = REFUSED[case]
    write(tmp_path / "support", support)
    write(tmp_path / "query", query)
    with pytest.raises(DataError) as caught:
        FolderEpisode(tmp_path / "support", tmp_path / "query", 4, 1)
    assert re.fullmatch(pattern, str(caught.value))


def test_a_file_is_no_support_folder(folder: Path) -> None:
    with pytest.raises(DataError, match=f"z.png is a file: {LAYOUT}$"):
        FolderEpisode(folder / "query" / "z.png", folder / "support", 4, 1)


@pytest.mark.parametrize("missing", ["support", "query"])
def test_folders_that_are_not_given_are_asked_for(missing: str, folder: Path) -> None:
    given = {name: None if name == missing else folder / name for name in ("support", "query")}
    with pytest.raises(DataError, match=f"^no {missing} folder is given: predict needs a folder of support images"):
        FolderEpisode(given["support"], given["query"], 4, 1)


def test_support_and_query_must_be_apart(folder: Path) -> None:
    (folder / "link").symlink_to(folder / "support")
    for other in ("support", "link", "query/../support"):
        with pytest.raises(DataError, match=r"is given as support and as query folder: they should be two folders$"):
            FolderEpisode(folder / "support", folder / other, 4, 1)
    for support, query in (("support", "support/red"), ("support", ".")):
        with pytest.raises(DataError, match=r"support and query folder should not lie in each other$"):
            FolderEpisode(folder / support, folder / query, 4, 1)


def worker(directory: Path) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    predict(directory, chunk=1, devices=2, strategy="ddp")


@pytest.mark.slow
def test_two_processes_write_what_one_does(folder: Path) -> None:
    alone = (predict(folder) / "predictions.csv").read_bytes()
    (folder / "query_classified" / "predictions.csv").unlink()
    done = python(__file__, folder, cwd=folder)
    assert (folder / "query_classified" / "predictions.csv").read_bytes() == alone
    assert len(list((folder / "query_classified").iterdir())) == 2
    assert done.stderr.count("The classes of 5 images are in") == 1


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
