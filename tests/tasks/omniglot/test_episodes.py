"""Episodes: what is in them, what is random and what is not, resumed runs, processes; by both samplers."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deqopt_tasks.omniglot.data import EpisodeData, Sampler
from deqopt_tasks.omniglot.episodes import ClassPool, EpisodeBatch
from deqopt_tasks.omniglot.glyphs import Glyphs
from torch import Tensor
from torch.utils.data import Dataset

from class_sources import Numbered, identities
from deqopt.data.splits import Part
from processes import python
from recorder import Recorder
from tiny_task import quiet_trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # Since Python 3.12, forking a process that has threads (PyTorch's own) warns.
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]

SAMPLERS = [Sampler.OWN, pytest.param(Sampler.LEARN2LEARN, marks=pytest.mark.learn2learn)]
SHAPES = [(2, 1, 1), (5, 1, 3), (10, 4, 2)]
Episodes = dict[int, EpisodeBatch]


def data_of(**settings: Any) -> EpisodeData:
    small = {"ways": 5, "shots": 2, "queries": 3, "batch_size": 4}
    counts = {"train_episodes": 12, "val_episodes": 6, "test_episodes": 10}
    return EpisodeData(Numbered, **{**small, **counts, **settings})


def rows(batches: Iterable[EpisodeBatch]) -> Episodes:
    """The episodes by their index; none may come twice."""
    found: Episodes = {}
    for batch in batches:
        for row in zip(*batch, strict=True):
            episode = EpisodeBatch(*row)
            assert int(episode.index) not in found
            found[int(episode.index)] = episode
    return found


def same(one: Episodes, other: Episodes) -> bool:
    """To the bit, and in the same order."""
    return list(one) == list(other) and all(
        torch.equal(a, b) for i in one for a, b in zip(one[i], other[i], strict=True)
    )


def differ(one: Episodes, other: Episodes) -> bool:
    """In every episode."""
    return all(not torch.equal(one[i].support, other[i].support) for i in one)


def alone(data: EpisodeData, part: Part) -> Episodes:
    """The episodes of epoch 0, one by one."""
    episodes = data.episodes[part]
    return {i: episodes[i] for i in range(len(episodes))}


@pytest.mark.parametrize("part", Part)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_episode_has_its_classes_once_and_no_image_twice(
    sampler: Sampler, shape: tuple[int, int, int], part: Part
) -> None:
    ways, shots, queries = shape
    data = data_of(ways=ways, shots=shots, queries=queries, sampler=sampler)
    allowed = set(getattr(data.splits, part.value))
    for index, episode in alone(data, part).items():
        assert int(episode.index) == index
        support, query = identities(episode.support), identities(episode.query)
        assert len(support) == ways * shots and len(query) == ways * queries
        classes = []
        for label in range(ways):
            mine, asked = support[episode.support_label == label], query[episode.query_label == label]
            assert len(mine) == shots and len(asked) == queries
            drawn = torch.cat([mine, asked])
            assert len(drawn[:, 0].unique()) == 1 and len(drawn[:, 1].unique()) == shots + queries
            classes.append(int(drawn[0, 0]))
        assert len(set(classes)) == ways and set(classes) <= allowed


def test_episodes_to_train_on_may_be_of_another_shape() -> None:
    data = data_of(train_ways=9, train_queries=1)
    sizes = {part: (len(e[0].support), len(e[0].query)) for part, e in data.episodes.items()}
    assert sizes == {Part.TRAIN: (18, 9), Part.VAL: (10, 15), Part.TEST: (10, 15)}
    plain = data_of()
    assert same(alone(data, Part.TEST), alone(plain, Part.TEST)) and same(alone(data, Part.VAL), alone(plain, Part.VAL))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_classes_images_and_labels_are_uniform(sampler: Sampler) -> None:
    """Counts of 1200 episodes lie within five standard deviations of those of uniform draws."""
    count, ways = 1200, 5
    data = data_of(ways=ways, shots=1, queries=1, train_episodes=count, sampler=sampler)
    episodes = list(alone(data, Part.TRAIN).values())
    labels = torch.stack([identities(episode.support)[:, 0] for episode in episodes])
    classes = torch.tensor(data.splits.train)
    table = (labels[..., None] == classes).sum(0)  # (ways, classes): how often a class had a label
    assert_uniform(table.sum(0), 1 / len(classes) * ways, count)
    assert_uniform(table.flatten(), 1 / len(classes), count)
    for images in ("support", "query"):
        found = torch.cat([identities(getattr(episode, images)) for episode in episodes])
        six = found[found[:, 0] % 3 == 0, 1]  # of the classes with six images
        assert_uniform(six.bincount(minlength=6), 1 / 6, len(six))


def assert_uniform(counts: Tensor, share: float, draws: int) -> None:
    mean, deviation = share * draws, (share * (1 - share) * draws) ** 0.5
    assert (counts - mean).abs().max() < 5 * deviation, counts


def test_a_turned_class_is_the_class_turned_against_the_clock() -> None:
    source, classes = Glyphs(9, 3), [5, 7, 11]
    pool = ClassPool(source, classes, rotations=True)
    assert len(pool) == 12 and pool.counts.tolist() == [20] * 12
    every = torch.randperm(12).repeat(2)
    for c, image in zip(every.tolist(), pool.images(every, torch.full_like(every, 4)), strict=True):
        quarters, which = divmod(c, 3)
        want = np.rot90(source.image(classes[which], 4).numpy(), quarters, (1, 2))
        assert np.array_equal(image, want)
    upright = pool.images(torch.tensor([0, 3]), torch.tensor([4, 4]))
    assert not torch.equal(upright[0], upright[1])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_classes_to_train_on_are_turned_equally_often_and_others_never(sampler: Sampler) -> None:
    data = data_of(rotations=True, train_episodes=400, ways=10, shots=1, queries=1, sampler=sampler)
    found = [torch.cat([identities(e.support), identities(e.query)]) for e in alone(data, Part.TRAIN).values()]
    for drawn in found:
        support, query = drawn.chunk(2)
        assert torch.equal(support[:, [0, 2]], query[:, [0, 2]])
        assert len(support[:, [0, 2]].unique(dim=0)) == 10
    turned = torch.cat([drawn[:10, 2] for drawn in found])
    assert_uniform(turned.bincount(minlength=4), 1 / 4, len(turned))
    assert any(len(drawn[:10, 0].unique()) < 10 for drawn in found), "two turns of one class are two classes"
    for part in (Part.VAL, Part.TEST):
        assert all((identities(e.query)[:, 2] == 0).all() for e in alone(data, part).values())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_val_and_test_are_the_same_in_every_pass_and_batch_and_worker(sampler: Sampler, workers: int) -> None:
    data = data_of(sampler=sampler, workers=workers)
    for part, loader in ((Part.VAL, data.val_dataloader()), (Part.TEST, data.test_dataloader())):
        want = alone(data_of(sampler=sampler, batch_size=1), part)
        for seed in (1, 2):
            torch.manual_seed(seed)
            random.seed(seed)
            assert same(rows(loader), want)
        assert differ(want, alone(data_of(sampler=sampler, episode_seed=1), part))
    labels = next(iter(data.test_dataloader())).support_label
    assert labels.shape == (4, 10) and labels.dtype == torch.int64


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_training_epochs_differ_and_come_from_the_seed_alone(sampler: Sampler, workers: int) -> None:
    def epochs(seed: int, **settings: Any) -> list[Episodes]:
        torch.manual_seed(seed)
        random.seed(seed)
        loader = data_of(sampler=sampler, rotations=True, **settings).train_dataloader()
        return [rows(loader) for _ in range(2)]

    first, second = epochs(1)
    assert sorted(first) == sorted(second) == list(range(12)) and list(first) != list(second)
    assert differ(first, second)
    again = epochs(2, workers=workers, batch_size=6)
    assert same(again[0], first) and same(again[1], second)
    other = epochs(1, episode_seed=7)[0]
    assert list(other) != list(first) and differ(first, other)


@pytest.mark.learn2learn
def test_learn2learn_leaves_the_global_generators_as_they_were() -> None:
    data = data_of(sampler=Sampler.LEARN2LEARN)
    _ = data.episodes
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
    _ = data.episodes[Part.TRAIN][3]
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # type: ignore[index]


@pytest.mark.parametrize("sampler", SAMPLERS[1:])
@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`")
def test_a_run_that_is_resumed_sees_what_it_would_have_seen(sampler: Sampler, tmp_path: Path) -> None:
    def train(epochs: int, checkpoint: Path | None = None) -> dict[int, Episodes]:
        model = Recorder(lambda batch: batch.query)
        trainer = quiet_trainer(tmp_path, max_epochs=epochs)
        data = data_of(sampler=sampler, rotations=True)
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=False)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return {epoch: rows(batches) for epoch, batches in model.seen.items()}

    whole, _ = train(3), train(1)
    rest = train(3, tmp_path / "1.ckpt")
    assert whole.keys() == {0, 1, 2} and rest.keys() == {1, 2}
    assert all(same(rest[epoch], whole[epoch]) for epoch in rest)


def test_predict_serves_the_batches_of_test_where_nothing_else_is_given() -> None:
    data = data_of()
    data.setup("predict")
    assert same(rows(data.predict_dataloader()), alone(data, Part.TEST))
    assert [len(batch.index) for batch in data.predict_dataloader()] == [4, 4, 2]


class Chunks(Dataset[EpisodeBatch]):
    """Episodes of several shapes."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> EpisodeBatch:
        image, label = torch.full((1 + index, 1, 2, 2), index / 4), torch.full((1 + index,), -1)
        return EpisodeBatch(image, label, image, label, torch.tensor(index))


def test_predict_serves_what_it_is_given_one_by_one_and_opens_nothing_else() -> None:
    def refuse() -> Numbered:
        raise AssertionError("opened the source")

    data = EpisodeData(refuse, ways=5, shots=1, queries=1, batch_size=4, predict_source=Chunks)
    data.setup("predict")
    batches = list(data.predict_dataloader())
    assert [tuple(batch.support.shape) for batch in batches] == [(1, 1 + i, 1, 2, 2) for i in range(3)]
    assert all(torch.equal(batch.query[0], Chunks()[i].query) for i, batch in enumerate(batches))


def test_nothing_imports_learn2learn_before_it_is_asked_for() -> None:
    outcome = python(
        "-c",
        "import sys, deqopt, deqopt_tasks.celeba.task, deqopt_tasks.cifar.task, deqopt_tasks.denoising.task\n"
        "import deqopt_tasks.omniglot.data, deqopt_tasks.omniglot.opening\n"
        "from deqopt_tasks.omniglot.glyphs import Glyphs\n"
        "deqopt_tasks.omniglot.data.EpisodeData(Glyphs, ways=5, shots=1, queries=1, batch_size=1).setup('fit')\n"
        "print([name for name in ('learn2learn', 'gym', 'gym_notices') if name in sys.modules])",
    )
    assert outcome.stdout.strip() == "[]" and not outcome.stderr


@pytest.mark.learn2learn
def test_gym_does_not_print_its_notice_and_keeps_it() -> None:
    outcome = python(
        "-c",
        "from deqopt_tasks.omniglot.optional import learn2learn\n"
        "package = learn2learn('a test', 'none')\n"
        "import gym, gym_notices.notices\n"
        "print(package.__name__, gym.__version__ in gym_notices.notices.notices)",
    )
    assert outcome.stdout.split() == ["learn2learn", "True"] and not outcome.stderr
