"""Distorted episodes: which images share a map, how far it goes, and that nothing but training sees it."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from deqopt_tasks.omniglot.data import EpisodeData
from deqopt_tasks.omniglot.distortion import Distortion, affine_maps
from deqopt_tasks.omniglot.glyphs import Glyphs
from deqopt_tasks.omniglot.task import Omniglot
from torch import Tensor

from class_sources import Numbered
from deqopt.data.splits import Part
from deqopt.errors import DataError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same_glyph(ways: int, count: int) -> Tensor:
    """One image as all images of all classes."""
    return Glyphs().images(torch.tensor([3]), torch.tensor([0])).expand(ways, count, -1, -1, -1).clone()


def spread(images: Tensor) -> float:
    """The largest difference between two images of a stack."""
    return float((images - images[:1]).abs().amax())


def test_no_strength_leaves_images_to_the_bit() -> None:
    images = torch.rand(3, 2, 1, 8, 8)
    assert torch.equal(Distortion()(images, seeded()), images)
    assert torch.equal(affine_maps(4, 0.0, seeded()), torch.eye(3).expand(4, 3, 3))


def test_a_class_is_distorted_as_a_whole_and_classes_differ() -> None:
    found = Distortion(classes=1.0)(same_glyph(6, 3), seeded())
    assert all(spread(one) == 0 for one in found) and spread(found[:, 0]) > 0.3


def test_images_are_distorted_one_by_one() -> None:
    found = Distortion(images=1.0)(same_glyph(2, 5), seeded())
    assert all(float((a - b).abs().amax()) > 0.1 for one in found for i, a in enumerate(one) for b in one[:i])


def test_half_of_the_classes_are_mirrored() -> None:
    glyph = same_glyph(400, 1)
    found = Distortion(classes=1e-6)(glyph, seeded())
    plain, mirrored = ((found - one).abs().flatten(1).amax(1) < 1e-3 for one in (glyph, glyph.flip(4)))
    assert (plain ^ mirrored).all() and 160 < int(mirrored.sum()) < 240


@pytest.mark.parametrize("strength", [0.5, 1.0, 3.0])
def test_maps_go_as_far_as_they_say(strength: float) -> None:
    """A map is a rotation of an upper triangular one, so QR gives its parts."""
    maps = affine_maps(2000, strength, seeded())[:, :2, :2].double()
    rotation, triangle = torch.linalg.qr(maps)
    sign = triangle.diagonal(dim1=1, dim2=2).sign()
    rotation, triangle = rotation * sign[:, None], triangle * sign[..., None]
    angle = torch.atan2(rotation[:, 1, 0], rotation[:, 0, 0]).abs().max()
    assert 0.95 < float(angle) / (strength * math.radians(10)) <= 1 + 1e-6
    size = triangle.diagonal(dim1=1, dim2=2).prod(1).sqrt()
    assert 0.95 < float((size - 1).abs().max()) / (0.1 * strength) <= 1 + 1e-6
    assert 0.95 < float(triangle[:, 0, 1].abs().max()) / (0.15 * strength) <= 1 + 1e-6


def test_images_move_by_a_twentieth_of_the_side_at_most() -> None:
    moves = affine_maps(2000, 1.0, seeded())[:, :2, 2].norm(dim=1)
    assert 0.12 < float(moves.max()) <= 0.1 * math.sqrt(2) + 1e-6, "of half a side of 1"
    middle = torch.ones(200, 1, 1, 28, 28)
    middle[..., 13:15, 13:15] = 0
    found = Distortion(classes=1.0)(middle, seeded())
    assert float(found[..., 13:15, 13:15].mean()) < 0.2, "classes stay where they are"


def test_paper_stays_white_and_values_in_their_range() -> None:
    assert bool((Distortion(3.0, 3.0)(torch.ones(20, 2, 3, 16, 16), seeded()) == 1).all())
    found = Distortion(2.0, 2.0)(same_glyph(50, 2), seeded())
    assert 0 <= float(found.min()) < 0.2 and float(found.max()) == 1


def data_of(**settings: Any) -> EpisodeData:
    small = {"ways": 4, "shots": 1, "queries": 2, "batch_size": 2, "train_episodes": 3, "val_episodes": 3}
    return EpisodeData(Numbered, **{**small, "test_episodes": 3, **settings})


def test_only_episodes_to_train_on_are_distorted_by_their_place_alone() -> None:
    plain, one, other, seeded_anew = (
        data_of(**settings).episodes
        for settings in (
            {},
            {"distortion": Distortion(1.0, 1.0)},
            {"distortion": Distortion(1.0, 1.0), "workers": 2},
            {"distortion": Distortion(1.0, 1.0), "episode_seed": 1},
        )
    )
    for part in (Part.VAL, Part.TEST):
        assert all(torch.equal(plain[part][i].query, one[part][i].query) for i in range(3))
    for i in range(6):
        torch.rand(i)
        assert torch.equal(one[Part.TRAIN][i].support, other[Part.TRAIN][i].support)
        assert torch.equal(one[Part.TRAIN][i].query_label, plain[Part.TRAIN][i].query_label)
        assert not torch.equal(one[Part.TRAIN][i].query, plain[Part.TRAIN][i].query)
        assert not torch.equal(one[Part.TRAIN][i].query, seeded_anew[Part.TRAIN][i].query)


@pytest.mark.parametrize("name", ["classes", "images"])
@pytest.mark.parametrize("strength", [-0.1, 5.1, math.inf, math.nan])
def test_strengths_that_cannot_be_meant_are_refused(name: str, strength: float) -> None:
    said = f"distort_{name} is {strength:g}: it should be 0 (do not distort) to 5"
    with pytest.raises(DataError, match=re.escape(said)):
        Omniglot(**{f"distort_{name}": strength})
