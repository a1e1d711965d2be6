"""The task `omniglot`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Callback
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from deqopt import Equilibrium, JointProblem, Task
from deqopt.adjoints import Adjoint, Unrolled
from deqopt.callbacks import ReportUnreadable
from deqopt.errors import DataError, ProblemError, check_finite
from deqopt.fixed_point import Anderson
from deqopt.nn.multiscale import Branches
from deqopt.solvers import JointAnderson, JointSolver, StepRule
from deqopt.solvers.exact import solve_state
from deqopt.state import State, tensors_of

from .data import EpisodeData, Sampler
from .distortion import Distortion
from .drawing import episode_figure
from .episodes import EpisodeBatch
from .equal_time import EqualTimeBaselines
from .learners import Baseline, make_learner
from .network import EpisodeNetwork
from .opening import open_classes
from .prediction import FolderEpisode, JoinClasses, classified_directory, write_classes
from .report import EpisodeReport


class Omniglot(Task):
    """Few-shot classification: a context is optimised for every episode, so that a few images define its classes.

    An episode has support images with labels and query images without labels. Its context ``x = (c, w_1 .. w_N)`` has
    a vector c, on which the cell depends for all images of the episode, and one vector for each of the N classes. The
    context is found from the support set, together with the equilibria of all support images,

        min_x  mean_s cross_entropy(sqrt(N / features) <phi(z_s), w>, label_s) + weight (|c|^2 + |w / 4|^2)
        subject to   z_s = f(z_s, c; image_s)

    and the outer loss is the cross-entropy of the queries, at their equilibria for that context. The logits of the
    queries are also multiplied by a learned scale. The gradient of this loss passes through the context with
    ``Unrolled`` (the default here), ``Implicit``, ``Phantom`` or ``JacobianFree``. ``InputHeld`` holds the context
    fixed, which gives the first-order gradient. ``Envelope`` holds it fixed too, and adds the gradient of the inner
    objective. An episode may have any number of classes, and permuting the labels permutes the predictions.

    Args:
        root: a folder with ``omniglot-py/`` as torchvision lays it out, with one subfolder of images per class, or with
            ``train/``, ``val/`` and ``test/``, each with one subfolder per class; by default characters are drawn from
            random strokes.
        download: let torchvision download Omniglot to ``root``.
        ways: classes per episode.
        shots: support images per class.
        queries: query images per class.
        train_ways: classes per episode in training; by default the same as ``ways``. More classes are harder.
        train_queries: query images per class in training; by default the same as ``queries``.
        size: height and width of the images, which are cropped to squares and resized.
        image_channels: number of colour channels, 1 or 3.
        batch_size: episodes per batch on each device.
        train_episodes: episodes per training epoch.
        val_episodes: episodes for validation.
        test_episodes: episodes for testing.
        rotations: whether training classes rotated by 90, 180 and 270 degrees count as additional classes.
        distort_classes: strength of the distortion of each class of a training episode as a whole: see
            :class:`Distortion`.
        distort_images: strength of the distortion of each single image of a training episode.
        sampler: how the images of an episode are chosen: OWN, or LEARN2LEARN, by the task transforms of that package.
        split_seed: seed that selects the validation classes (and the test classes, where the data does not define
            them).
        episode_seed: seed of the episodes. Those of training change with the epoch; those of evaluation stay the same.
        workers: processes that load images; 0 loads them in the main process.
        widths: channels of the cell's branches, finest first.
        resolution: height and width of the finest branch; ``size`` must be 2, 4, 8 ... times as large. By default a
            quarter of ``size``, or half of it.
        context: width of c.
        features: width of phi and of the vector of a class.
        weight: weight of ``|c|^2 + |w / 4|^2``.
        transductive: whether the queries of an episode are classified together: their mean phi is shifted to the mean
            phi of the support set, which is right where both have equal shares of the classes. By default every query
            is classified independently.
        baselines: methods that are trained for the same time for comparison, and tested: MAML, ANIL (both need the
            extra ``meta``) and PROTOTYPES.
        support: in ``predict``, a folder with one subfolder of images per class, of any number of classes; by default
            the test episodes are classified.
        query: in ``predict``, a folder of images to classify; the classes are written to the folder
            ``QUERY_classified`` beside it.
    """

    def __init__(
        self,
        root: str | None = None,
        download: bool = False,
        ways: int = 5,
        shots: int = 1,
        queries: int = 5,
        train_ways: int | None = None,
        train_queries: int | None = None,
        size: int = 28,
        image_channels: int = 1,
        batch_size: int = 4,
        train_episodes: int = 800,
        val_episodes: int = 200,
        test_episodes: int = 600,
        rotations: bool = True,
        distort_classes: float = 0.0,
        distort_images: float = 0.0,
        sampler: Sampler = Sampler.OWN,
        split_seed: int = 0,
        episode_seed: int = 0,
        workers: int = 0,
        widths: list[int] = [32],  # noqa: B006
        resolution: int | None = None,
        context: int = 32,
        features: int = 64,
        weight: float = 0.25,
        transductive: bool = False,
        baselines: list[Baseline] = [],  # noqa: B006
        support: str | None = None,
        query: str | None = None,
    ) -> None:
        super().__init__()
        if not weight > 0:
            raise ProblemError(
                f"omniglot: weight must be larger than 0, so that the context has a unique optimum; got {weight}"
            )
        check_finite("omniglot", weight=weight)
        self.weight, self.transductive = weight, transductive
        self._last: tuple[Tensor | None, Tensor] = None, torch.empty(0)
        resolution = resolution or size // (2 if size % 4 else 4)
        network = partial(EpisodeNetwork, image_channels, size, widths, resolution, context=context, features=features)
        self.network = network()
        self._baselines = EqualTimeBaselines(
            {one: partial(make_learner, one, image_channels, size, ways, network, batch_size) for one in baselines}
        )
        self._query = query
        given = support is not None or query is not None
        own = partial(FolderEpisode, support, query, size, image_channels)
        self.data = EpisodeData(
            partial(open_classes, root, size=size, channels=image_channels, download=download),
            ways=ways,
            shots=shots,
            queries=queries,
            train_ways=train_ways,
            train_queries=train_queries,
            batch_size=batch_size,
            train_episodes=train_episodes,
            val_episodes=val_episodes,
            test_episodes=test_episodes,
            rotations=rotations,
            distortion=Distortion(distort_classes, distort_images),
            sampler=sampler,
            split_seed=split_seed,
            episode_seed=episode_seed,
            workers=workers,
            predict_source=own if given else None,
        )

    @classmethod
    def default_solver(cls) -> JointSolver:
        """A short, plain solve, so that the gradient can pass through all its evaluations."""
        return JointAnderson(max_nfe=4, step_size=3.0, step_rule=StepRule.PLAIN, history_size=1)

    @classmethod
    def default_adjoint(cls) -> Adjoint:
        return Unrolled()

    @property
    def cell(self) -> nn.Module:
        """The network behind f."""
        return self.network.cell

    @property
    def own_episode(self) -> FolderEpisode | None:
        """The user's folders of support and query images, if given."""
        source = self.data.predict_source
        return source if isinstance(source, FolderEpisode) else None

    def datamodule(self) -> EpisodeData:
        return self.data

    # -- the problem ----------------------------------------------------------------------------------------------

    def start(self, batch: EpisodeBatch) -> tuple[State, Tensor]:
        """A context of zero, with the same vector for every class."""
        x0 = batch.support.new_zeros(len(batch.support), self.network.context + _ways(batch) * self.network.width)
        return self.network.start(self._parts(x0)[0], self.network.injected(batch.support)), x0

    def problem(self, batch: EpisodeBatch) -> JointProblem:
        """
        Raises:
            DataError: images outside [0, 1], or a class without a support image.
        """
        check_batch(batch)
        u = self.network.injected(batch.support)
        return JointProblem(self._f, self._objective, data=(batch.support_label, *u))

    def _f(self, z: Branches, x: Tensor, data: tuple[Tensor, ...]) -> State:
        return self.network.f(z, self._parts(x)[0], data[1:])

    def _objective(self, z: Branches, x: Tensor, data: tuple[Tensor, ...]) -> Tensor:
        label = data[0]
        logits = self.network.logits(self.network.features(z), self._parts(x)[1])
        return _cross_entropy(logits, label) + self.weight * self.network.price(*self._parts(x))

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """c, (B, context), and w, (B, ways, features)."""
        c, w = x[:, : self.network.context], x[:, self.network.context :]
        return c, w.unflatten(1, (-1, self.network.width))

    # -- what is made of the solution -----------------------------------------------------------------------------

    def query_logits(self, equilibrium: Equilibrium, batch: EpisodeBatch) -> Tensor:
        """(B, Q, ways) the logits of the queries at their equilibria for the optimised context."""
        c, w = self._parts(equilibrium.x)
        phi = self.network.features(self.network.solved(batch.query, c))
        if self.transductive:
            known = self.network.features(tensors_of(equilibrium.z))
            phi = phi + known.mean(1, keepdim=True) - phi.mean(1, keepdim=True)
        return self.network.log_scale.exp() * self.network.logits(phi, w)

    def loss(self, equilibrium: Equilibrium, batch: EpisodeBatch) -> Tensor:
        """(B,) the mean cross-entropy of the queries."""
        free = equilibrium.detach_held()
        logits = self.query_logits(free, batch)
        self._last = equilibrium.x, logits.detach()
        error = _cross_entropy(logits, batch.query_label)
        if equilibrium.objective.requires_grad and not any(
            part.requires_grad for part in (*tensors_of(free.z), free.x)
        ):
            return error + equilibrium.objective - equilibrium.objective.detach()
        return error

    def probabilities(self, equilibrium: Equilibrium, batch: EpisodeBatch) -> Tensor:
        """(B, Q, ways) the class probabilities of the queries, without gradients; computed once per equilibrium."""
        x, logits = self._last
        if x is not equilibrium.x:
            with torch.no_grad():
                logits = self.query_logits(equilibrium, batch)
            self._last = equilibrium.x, logits
        return logits.softmax(2)

    def objective_at_start(self, batch: EpisodeBatch) -> Tensor:
        """(B,) the inner objective at x0, with z solved exactly."""
        problem, (z0, x0) = self.problem(batch), self.start(batch)
        with torch.no_grad():
            return problem.J(solve_state(problem, x0, z0, Anderson(max_nfe=100, tol=1e-5)).z, x0)

    def metrics(self) -> Mapping[str, Metric]:
        return {"accuracy": MulticlassAccuracy(max(shape.ways for shape in self.data.shapes.values()), average="micro")}

    def outcome(self, equilibrium: Equilibrium, batch: EpisodeBatch) -> tuple[Tensor, Tensor]:
        return self.probabilities(equilibrium, batch).argmax(2), batch.query_label

    def figures(self, equilibrium: Equilibrium, batch: EpisodeBatch) -> Mapping[str, Figure]:
        """The first episode: its support set, its queries and their predicted classes."""
        names = [f"class {one}" for one in range(_ways(batch))]
        return {"episode": episode_figure(batch, self.probabilities(equilibrium, batch), names)}

    def callbacks(self) -> list[Callback]:
        report = EpisodeReport(self.probabilities, self.objective_at_start, self._baselines.methods)
        unreadable = ReportUnreadable(lambda: self.own_episode.queries if self.own_episode else None, "classified")
        return [self._baselines, report, JoinClasses(), unreadable]

    def prediction_directory(self) -> Path | None:
        """``QUERY_classified``, beside the folder of queries; without such a folder, the one of the run."""
        return None if self._query is None else classified_directory(self._query)

    def write_predictions(self, equilibrium: Equilibrium, batch: EpisodeBatch, directory: Path) -> list[Path]:
        """``predictions.csv``, with one query per row, and ``episode.png``, a figure of the first episode."""
        shares, episode = self.probabilities(equilibrium, batch).float().cpu(), self.own_episode
        if episode is not None:
            return write_classes(batch, shares, episode.files, episode.class_names, directory)
        queries = range(shares.shape[1])
        names = [f"class {one}" for one in range(shares.shape[2])]
        return write_classes(
            batch, shares, lambda i: [f"episode {i}, query {one}" for one in queries], names, directory
        )


def check_batch(batch: EpisodeBatch) -> None:
    """Raise DataError for images outside [0, 1], for labels outside 0 to ways - 1, and for classes without support."""
    for name, images in (("support", batch.support), ("query", batch.query)):
        low, high = (float(bound) for bound in images.aminmax())
        if not (low >= 0 and high <= 1):
            raise DataError(
                f"omniglot: {name} images must be in [0, 1], but the batch has values from {low:g} to {high:g}"
            )
    ways = _ways(batch)
    present = F.one_hot(batch.support_label.clamp_min(0), ways).sum(1)
    if int(batch.support_label.min()) < 0 or not bool((present > 0).all()):
        raise DataError(
            f"omniglot: every episode must have support images of all classes, with labels 0 to {ways - 1} (ways - 1)"
        )
    if not -1 <= int(batch.query_label.min()) <= int(batch.query_label.max()) < ways:
        raise DataError(f"omniglot: query labels must be 0 to {ways - 1}, or -1 where unknown")


def _ways(batch: EpisodeBatch) -> int:
    return int(batch.support_label.max()) + 1


def _cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """(B,) the mean over the images of logits (B, S, ways) and labels (B, S)."""
    return F.cross_entropy(logits.mT, label, reduction="none").mean(1)
