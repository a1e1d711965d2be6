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
        samples: of the epoch, in all processes together.
        batch_size: samples a batch.
        batches: of the epoch in this process.
        seed: of the order.
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
    """A loader that can leave out the first batches of an epoch without loading them.

    An epoch begins when its first batch is asked for, and not when `iter` is called: Lightning calls `iter` in a run
    that is resumed before it has put the number of the epoch right, on which the order may depend. No pass draws from
    the global generators.

    Args:
        dataset: of the samples.
        seed: of the order, 0 or larger; the seeds of the workers come from it, too.
        settings: as of `torch.utils.data.DataLoader`.

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
            CheckpointError: the state that was loaded is of an epoch that is divided otherwise.
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
        """The division; where in the epoch a run is, its trainer knows better than a loader that loads ahead."""
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
