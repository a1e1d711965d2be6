"""Images that several tasks share: embedded digits and photographs, folders, `.npz` archives and CelebA.

Every source gives float32 tensors (channels, size, size) in [-1, 1]. `open_images` finds the right source for
what a user points at, `ImageDataModule` serves its splits to Lightning, and `save_image` writes a result. Images
with labels, in [0, 1], are in `deqopt.data.labelled`, and here by name: `open_labelled`, `LabelledDataModule`.
"""

from deqopt.data.archive import ImageArchive
from deqopt.data.celeba import CelebAFaces
from deqopt.data.embedded import EmbeddedDigits, EmbeddedPhotographs
from deqopt.data.epochs import EpochOrder, EpochSamples, epochs_of, generator_of
from deqopt.data.folder import ImageFolder
from deqopt.data.labelled import (
    Augmentation,
    Download,
    LabelledBatch,
    LabelledDataModule,
    LabelledSample,
    LabelledSource,
    open_labelled,
    open_unlabelled,
)
from deqopt.data.loader import EpochLoader
from deqopt.data.module import ImageDataModule, SourceDataModule, SplitDataModule
from deqopt.data.opening import open_images
from deqopt.data.pixels import UnreadableImageError, save_image
from deqopt.data.source import ImageBatch, ImageSample, ImageSource
from deqopt.data.splits import Splits

__all__ = [
    "Augmentation",
    "CelebAFaces",
    "Download",
    "EmbeddedDigits",
    "EmbeddedPhotographs",
    "EpochLoader",
    "EpochOrder",
    "EpochSamples",
    "ImageArchive",
    "ImageBatch",
    "ImageDataModule",
    "ImageFolder",
    "ImageSample",
    "ImageSource",
    "LabelledBatch",
    "LabelledDataModule",
    "LabelledSample",
    "LabelledSource",
    "SourceDataModule",
    "SplitDataModule",
    "Splits",
    "UnreadableImageError",
    "epochs_of",
    "generator_of",
    "open_images",
    "open_labelled",
    "open_unlabelled",
    "save_image",
]
