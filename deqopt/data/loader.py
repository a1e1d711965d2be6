"""A loader that can start in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, Dataset

from deqopt.data.epochs import generator_of
from deqopt.errors import CheckpointError
from deqopt.signals import leave_to_parent


@dataclass(frozen=True)
class Division:
    """How an epoch is divided into batches in one process.

    Args:
        samples: number of samples of the epoch, in all processes together.
        batch_size: samples per batch.
        batches: number of batches of the epoch in this process.
        seed: seed of the order.
    """

    samples: int
    batch_size: int | None
    batches: int
    seed: int

    def __str__(self) -> str:
        return (
            f"{self.batches} batches of {self.batch_size} from {self.samples} samples in the order of seed {self.seed}"
        )


class EpochLoader(DataLoader[Any]):
    """A loader that can skip the first batches of an epoch without loading them.

    An epoch begins when its first batch is requested, not when `iter` is called: in a resumed run, Lightning calls
    `iter` before it has set the number of the epoch, on which the order may depend. The loader does not draw from the
    global random-number generators.

    Args:
        dataset: dataset of the samples.
        seed: seed of the order and of the workers, 0 or larger.
        settings: arguments of `torch.utils.data.DataLoader`.

    Example:
        >>> from deqopt.data import EpochLoader
        >>> [batch.tolist() for batch in EpochLoader(range(4), seed=0, batch_size=2)]
        [[0, 1], [2, 3]]
    """

    def __init__(self, dataset: Dataset[Any], *, seed: int = 0, **settings: Any) -> None:
        super().__init__(dataset, **{"generator": generator_of(seed), "worker_init_fn": leave_to_parent, **settings})
        self._seed, self._first = seed, 0
        self._written: Division | None = None

    @property
    def division(self) -> Division:
        """How an epoch of this loader is divided."""
        return Division(len(self.dataset), self.batch_size, len(self), self._seed)  # type: ignore[arg-type]

    def start_at(self, batch: int) -> None:
        """Begin the next epoch with this batch; 0 is the first.

        Raises:
            CheckpointError: in the loaded state, the epoch is divided into other batches.
        """
        written, self._written = self._written, None
        if batch and written is not None and written != self.division:
            raise CheckpointError(
                f"the checkpoint was written in the middle of an epoch, after {batch} batches, and its epoch has "
                f"{written}; now an epoch has {self.division}: go on with the same data, batch size, seed and number "
                "of processes, or from a checkpoint of the end of an epoch"
            )
        self._first = batch

    def state_dict(self) -> dict[str, Any]:
        """The division. The position in the epoch is not included: the trainer knows it, and the loader loads ahead."""
        return asdict(self.division)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._written = Division(**state)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        first, self._first = self._first, 0
        yield from self._rest(first) if first else super().__iter__()

    def _rest(self, first: int) -> DataLoader[Any]:
        assert self.batch_sampler is not None
        return DataLoader(
            self.dataset,
            batch_sampler=list(islice(self.batch_sampler, first, None)),
            num_workers=self.num_workers,
            collate_fn=self.collate_fn,
            pin_memory=self.pin_memory,
            timeout=self.timeout,
            worker_init_fn=self.worker_init_fn,
            multiprocessing_context=self.multiprocessing_context,
            prefetch_factor=self.prefetch_factor,
            generator=self.generator,
        )
