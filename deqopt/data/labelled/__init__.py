"""Images with the class of each, for tasks that classify: in [0, 1], the units in which attacks are measured.

`open_labelled` finds the right source for what a user points at, `open_unlabelled` the images to predict on, and
`LabelledDataModule` serves both to Lightning.
"""

from deqopt.data.labelled.augmentation import Augmentation
from deqopt.data.labelled.module import LabelledDataModule
from deqopt.data.labelled.opening import open_labelled, open_unlabelled
from deqopt.data.labelled.published import Download
from deqopt.data.labelled.source import LabelledBatch, LabelledSample, LabelledSource

__all__ = [
    "Augmentation",
    "Download",
    "LabelledBatch",
    "LabelledDataModule",
    "LabelledSample",
    "LabelledSource",
    "open_labelled",
    "open_unlabelled",
]
