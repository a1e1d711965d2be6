"""Trains the models that are measured, once; afterwards they are read from the output folder."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from benchmarks.data import Batch, Digits
from benchmarks.models import Attack, LatentFitting, Model
from deqopt.regularizers import JacobianPenalty
from deqopt.weights import cached_weights


@dataclass(frozen=True)
class Recipe:
    """One-cycle Adam with clipped gradients, on the mean loss times ``scale`` plus the Jacobian penalty."""

    steps: int
    scale: float = 1.0
    batch: int = 32
    lr: float = 2e-3
    seed: int = 0


@dataclass(frozen=True)
class Trained:
    """A model by its name, how it is made, and how it is trained."""

    name: str
    make: Callable[[], Model]
    recipe: Recipe

    def load(self, folder: Path, data: Digits, steps: int | None = None) -> Model:
        """The frozen model, from ``folder`` where it was trained before; ``steps`` replaces those of the recipe."""
        recipe = replace(self.recipe, seed=data.seed, steps=self.recipe.steps if steps is None else steps)
        torch.manual_seed(recipe.seed)
        model = self.make()
        key = hashlib.sha256(f"{model} {recipe}".encode()).hexdigest()[:12]
        path = folder / f"{self.name}-{key}.pt"
        if not path.exists():
            print(f"training {self.name}, {recipe.steps} steps", flush=True)
            train(model, recipe, data.train)
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(model.state_dict(), path)
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.frozen()


DECODER_A = Trained("decoder-a", lambda: LatentFitting([24]), Recipe(steps=1200, scale=1 / 256))
DECODER_B = Trained("decoder-b", lambda: LatentFitting([24, 48]), Recipe(steps=500, scale=1 / 256))
CLASSIFIER = Trained("classifier", Attack, Recipe(steps=300))


def train(model: Model, recipe: Recipe, images: Batch) -> None:
    """Train ``model`` in place."""
    generator = torch.Generator().manual_seed(recipe.seed)
    torch.manual_seed(recipe.seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=recipe.lr, total_steps=recipe.steps)
    regularizer = JacobianPenalty(weight=1.0)
    started = time.perf_counter()
    for step in range(1, recipe.steps + 1):
        rows = torch.randint(len(images.label), (recipe.batch,), generator=generator)
        with cached_weights(model):
            problem, solved = model.solved_for_training(Batch(images.image[rows], images.label[rows]))
            loss = solved.objective.mean() * recipe.scale
            penalty = regularizer.penalty(problem, solved)
            optimizer.zero_grad()
            (loss + regularizer.weight * penalty).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            seconds = time.perf_counter() - started
            print(f"  step {step}: loss {loss:.4f}, Jacobian {penalty:.3f}, {seconds:.0f} s", flush=True)
