"""The four-block convolutional network that MAML and ANIL adapt."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor, nn

from deqopt.errors import ProblemError

from .optional import learn2learn

SMALLEST = 16
"""Smallest height and width of images for four poolings."""


def package() -> ModuleType:
    """The package learn2learn.

    Raises:
        ProblemError: the package is missing.
    """
    return learn2learn("each of the baselines MAML and ANIL", "--task.baselines [PROTOTYPES]")


class ConvolutionalNet(nn.Module):
    """``classifier(features(1 - images))``, made by learn2learn: (n, channels, H, W) in [0, 1] to logits (n, ways).

    It has four blocks of a 3x3 convolution, batch normalisation and ReLU. Images of 28 x 28 with one channel get the
    network of Finn et al. (2017) for Omniglot, with strides and the mean over space (``OmniglotCNN``). Other images get
    their network for mini-ImageNet, with pooling (``MiniImagenetCNN``).

    As published, normalisation always uses the statistics of the images in the same forward pass, also in testing. So
    the queries of an episode are not classified independently but help each other (Nichol et al. 2018 call this
    transductive). No running statistics are kept.

    Unlike in the published network, the scales of normalisation start at 1 instead of random values below 1, and the
    classifier starts with PyTorch's default instead of N(0, 1): this learns faster.

    Args:
        image_channels, size: colour channels and size of the images.
        ways: classes per episode; the network supports only this number.
        width: channels of a block.

    Raises:
        ProblemError: learn2learn is missing, or images are smaller than 16 x 16.
    """

    def __init__(self, image_channels: int, size: int, ways: int, width: int = 64) -> None:
        super().__init__()
        models = package().vision.models
        if size < SMALLEST:
            raise ProblemError(
                f"the convolutional network of MAML and ANIL needs images of {SMALLEST}x{SMALLEST} or larger, "
                f"but these have a size of {size}"
            )
        if (image_channels, size) == (1, 28):
            net = models.OmniglotCNN(ways, hidden_size=width)
        else:
            pooled = width * (size // SMALLEST) ** 2
            net = models.MiniImagenetCNN(ways, hidden_size=width, channels=image_channels, embedding_size=pooled)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)
                module.track_running_stats = False
                module.running_mean = module.running_var = module.num_batches_tracked = None
        net.classifier.reset_parameters()
        self.features, self.classifier = net.features, net.classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(1 - images))
