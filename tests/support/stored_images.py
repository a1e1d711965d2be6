"""Images written as people store them: files, archives, and the layout of CelebA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def colours(count: int, height: int = 12, width: int = 10) -> NDArray[np.uint8]:
    """Noise (count, height, width, 3)."""
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def write_images(folder: Path, images: NDArray[Any], suffix: str = ".png") -> Path:
    """Files that are numbered from 1 on."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i + 1:06d}{suffix}")
    return folder


def write_npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def write_celeba(root: Path, parts: str, images: NDArray[Any] | None = None) -> Path:
    """Images in CelebA's layout; the digits of `parts` are the partition."""
    images = colours(len(parts)) if images is None else images
    write_images(root / "celeba" / "img_align_celeba", images, ".jpg")
    lines = [f"{i:06d}.jpg {part}\n" for i, part in enumerate(parts, start=1)]
    (root / "celeba" / "list_eval_partition.txt").write_text("".join(lines))
    return root


def write_bytes(path: Path, content: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
