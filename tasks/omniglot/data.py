"""The data of few-shot learning: episodes whose classes are in no other split."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from functools import cached_property
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from deqopt.data import Part, SplitDataModule, generator_of
from deqopt.errors import DataError
from deqopt.ranges import at_least, not_negative

from .distortion import Distortion
from .episodes import ClassPool, EpisodeBatch, Episodes, EpisodeShape, OwnChoice, Place
from .learn2learn_episodes import Learn2LearnChoice
from .sources import ClassSource


class Sampler(Enum):
    """How the images of an episode are chosen."""

    OWN = "own"
    LEARN2LEARN = "learn2learn"


class EpisodeData(SplitDataModule[ClassSource]):
    """Batches (`EpisodeBatch`) of episodes of the splits of a source of classes.

    The random choices depend only on ``(episode_seed, split, epoch, index)`` of an episode, not on the global seed or
    the number of workers, processes and batches. Episodes are new in every training epoch, and the same in every pass
    over val and test. The epoch is that of the trainer, so a resumed run goes on as if it had not been interrupted;
    without a trainer, passes over a loader are counted.

    Attributes:
        shapes: the shape of the episodes of every split.

    Args:
        source: function that opens the classes, for example `functools.partial(open_classes, None, size=28,
            channels=1)`.
        ways: classes per episode.
        shots: support images per class.
        queries: query images per class.
        train_ways: classes per training episode; by default the same as ``ways``. More classes are harder.
        train_queries: query images per class in training; by default the same as ``queries``.
        batch_size: episodes per batch on each device.
        train_episodes: episodes per training epoch, 800 by default.
        val_episodes: episodes for validation, 200 by default.
        test_episodes: episodes for testing, 600 by default.
        rotations: whether training classes rotated by 90, 180 and 270 degrees count as additional classes; classes of
            validation and test are never rotated.
        distortion: distortion of the training classes and images; by default none.
        split_seed: seed of the division of the classes into splits only.
        episode_seed: seed of the episodes, 0 (default) or larger.
        workers: see `SplitDataModule`.
        sampler: how the images of an episode are chosen.
        predict_source: function that opens the episodes to predict on, one per item. They may have different shapes,
            so a batch holds one episode. By default predict serves the batches of test.

    Raises:
        ProblemError: see `SplitDataModule`; fewer than 2 ways, no shots, queries or episodes, or a negative
            episode_seed; when the data are opened, the sampler needs learn2learn, which is missing.
        DataError: see `SplitDataModule`; when the data are opened, a split has fewer classes than ways, or a class has
            fewer images than shots plus queries.
    """

    def __init__(
        self,
        source: Callable[[], ClassSource],
        *,
        ways: int,
        shots: int,
        queries: int,
        train_ways: int | None = None,
        train_queries: int | None = None,
        batch_size: int,
        train_episodes: int = 800,
        val_episodes: int = 200,
        test_episodes: int = 600,
        rotations: bool = False,
        distortion: Distortion | None = None,
        split_seed: int = 0,
        episode_seed: int = 0,
        workers: int = 0,
        sampler: Sampler = Sampler.OWN,
        predict_source: Callable[[], Dataset[EpisodeBatch]] | None = None,
    ) -> None:
        super().__init__(source, batch_size=batch_size, workers=workers, seed=split_seed)
        train_ways = ways if train_ways is None else train_ways
        train_queries = queries if train_queries is None else train_queries
        at_least(2, ways=ways, train_ways=train_ways)
        at_least(1, shots=shots, queries=queries, train_queries=train_queries)
        at_least(1, train_episodes=train_episodes, val_episodes=val_episodes, test_episodes=test_episodes)
        not_negative(episode_seed=episode_seed)
        evaluated = EpisodeShape(ways, shots, queries)
        self.shapes = {
            Part.TRAIN: EpisodeShape(train_ways, shots, train_queries),
            Part.VAL: evaluated,
            Part.TEST: evaluated,
        }
        self._counts = {Part.TRAIN: train_episodes, Part.VAL: val_episodes, Part.TEST: test_episodes}
        self._rotations, self._episode_seed, self._sampler = rotations, episode_seed, sampler
        self._distortion = distortion or Distortion()
        self._open_to_predict = predict_source

    @cached_property
    def episodes(self) -> dict[Part, Episodes]:
        """The episodes of every split."""
        classes = {part: self.splits[part] for part in Part}
        pools = {
            part: ClassPool(self.source, members, rotations=self._rotations and part is Part.TRAIN)
            for part, members in classes.items()
        }
        self._check_classes(pools)
        self._check_images(classes)
        kind = OwnChoice if self._sampler is Sampler.OWN else Learn2LearnChoice
        return {
            part: Episodes(
                pool,
                kind(pool.counts, self.shapes[part], self._episode_seed),
                self.shapes[part],
                split=number,
                count=self._counts[part],
                distort=self._distorted if part is Part.TRAIN else None,
            )
            for number, (part, pool) in enumerate(pools.items())
        }

    @cached_property
    def predict_source(self) -> Dataset[EpisodeBatch]:
        """The episodes to predict on."""
        return self.episodes[Part.TEST] if self._open_to_predict is None else self._open_to_predict()

    @property
    def order_seed(self) -> int:
        return self._episode_seed

    def train_dataloader(self) -> DataLoader[Any]:
        return self._training_loader(self.episodes[Part.TRAIN], self._counts[Part.TRAIN])

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.episodes[Part.VAL])

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.episodes[Part.TEST])

    def predict_dataloader(self) -> DataLoader[Any]:
        if self._open_to_predict is None:
            return self.test_dataloader()
        return DataLoader(self.predict_source, batch_size=1, num_workers=self._workers, collate_fn=default_collate)

    def _distorted(self, images: Tensor, place: Place) -> Tensor:
        return self._distortion(images, generator_of(self._episode_seed, *place, 1))

    def _open_for(self, stage: str) -> None:
        _ = self.predict_source if stage == "predict" else self.episodes

    def _uses_splits(self, stage: str) -> bool:
        return stage != "predict" or self._open_to_predict is None

    def _check_classes(self, pools: dict[Part, ClassPool]) -> None:
        lacking = [part for part, pool in pools.items() if len(pool) < self.shapes[part].ways]
        if not lacking:
            return
        part = min(lacking, key=lambda part: len(pools[part]))
        found, train, ways = len(pools[part]), self.shapes[Part.TRAIN].ways, self.shapes[Part.TEST].ways
        name = "train_ways" if self.shapes[part].ways != ways else "ways"
        counts = "{}, {} and {}".format(*map(len, pools.values()))
        fewer = f"set {name} to {found} or less, or " if found > 1 else ""
        raise DataError(
            f"{self.source.where} has {counts} classes to train, validate and test with, and {name} is "
            f"{self.shapes[part].ways}, for which {part.value} has too few: {fewer}give {max(10 * ways, 2 * train)} "
            f"classes or more, or train/, val/ and test/ with {train}, {ways} and {ways} or more"
        )

    def _check_images(self, classes: dict[Part, list[int]]) -> None:
        needed = {part: shape.images for part, shape in self.shapes.items()}
        few = [(part, c) for part, members in classes.items() for c in members if self.source.count(c) < needed[part]]
        if few:
            part, c = few[0]
            shape, others = self.shapes[part], f", and {len(few) - 1} other class(es) have too few" if few[1:] else ""
            name = "train_queries" if shape.queries != self.shapes[Part.TEST].queries else "queries"
            raise DataError(
                f"class {self.source.name(c)} of {self.source.where} has {self.source.count(c)} image(s){others}: "
                f"shots is {shape.shots} and {name} is {shape.queries}, so a class of {part.value} should have "
                f"{needed[part]} or more"
            )
