"""Images that several tasks share: embedded digits and photographs, folders, `.npz` archives and published data sets.

Every source gives float32 tensors (channels, size, size) in [0, 1], from black to white, with labels if they are known.
`open_images` and `open_labelled` find the right source for a path of the user, `ImageDataModule` serves its splits to
Lightning, and `save_image` writes a result. A network that works in [-1, 1] converts its input and output by `signed`
and `unsigned`.
"""

from deqopt.data.archive import ImageArchive
from deqopt.data.augmentation import Augmentation
from deqopt.data.celeba import CelebAFaces
from deqopt.data.embedded import EmbeddedDigits, EmbeddedPhotographs
from deqopt.data.epochs import EpochOrder, EpochSamples, epochs_of, generator_of
from deqopt.data.folder import ImageFolder
from deqopt.data.labelled_source import LabelledSource
from deqopt.data.loader import EpochLoader
from deqopt.data.module import ImageDataModule, SplitDataModule
from deqopt.data.opening import open_images, open_labelled
from deqopt.data.pixels import UnreadableImageError, save_image, signed, unsigned
from deqopt.data.published import Download
from deqopt.data.source import ImageBatch, ImageSample, ImageSource, Source
from deqopt.data.splits import Part, Splits

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
    "LabelledSource",
    "Part",
    "Source",
    "SplitDataModule",
    "Splits",
    "UnreadableImageError",
    "epochs_of",
    "generator_of",
    "open_images",
    "open_labelled",
    "save_image",
    "signed",
    "unsigned",
]
