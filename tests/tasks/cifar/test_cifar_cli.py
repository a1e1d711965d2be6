"""The task cifar on the command line: training, tests under attack, predictions, real data, several processes."""

from __future__ import annotations

import json
import re
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deqopt_tasks.cifar.catalogue import AttackName
from deqopt_tasks.cifar.gradients import ExactClassifier
from deqopt_tasks.cifar.losses import Adversarial, Clean, Trades
from deqopt_tasks.cifar.task import Cifar
from PIL import Image
from torch import Tensor

from command import SMALL_TRAINER, column, complaint, succeeded, user_folder
from deqopt import JointModule
from deqopt.callbacks import PredictionWriter
from deqopt.loop_settings import Norm
from deqopt.regularizers import SpectralPenalty
from deqopt.solvers import PGD, Bilevel, JointSolver, SecantTracking
from labelled_sources import NAMES, pixels, write_classes
from paths import REAL_DATA
from processes import python
from tiny_task import quiet_trainer

MNIST, CIFAR = REAL_DATA / "MNIST", REAL_DATA / "cifar10-subset"
RADIUS = 1.2
SOLVER = SecantTracking(max_nfe=8)
SETTINGS: dict[str, Any] = {
    **{"size": 8, "image_channels": 1, "batch_size": 32, "widths": [8], "resolution": 4},
    **{"radius": RADIUS, "attack_images": 6, "radii": []},
}
SMALL: dict[str, Any] = {
    "task": {"class_path": "cifar", "init_args": SETTINGS},
    "solver": {"class_path": "SecantTracking", "init_args": {"max_nfe": 8}},
    "model": {"regularizers": [{"class_path": "SpectralPenalty"}]},
    "trainer": {**SMALL_TRAINER, "max_epochs": 1},
}
FIT = ("fit", "--config=small.yaml")
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.limit_test_batches=1")
METRICS = ("loss", "robust_accuracy", "clean_accuracy", "residual")


folder = user_folder(SMALL)


def class_folder(path: Path, count: int = 40) -> Path:
    """Noise, brighter from class to class, in colours, a subfolder a class."""
    labels = np.arange(count) % 3
    write_classes(path, (pixels(count) // 2 + 60 * labels[:, None, None, None]).astype(np.uint8), labels)
    return path


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """On digits."""
    return folder / succeeded(*FIT, "--trainer.limit_train_batches=10", "--model.optimization.lr=0.01").run


@pytest.fixture(scope="module")
def animals(folder: Path) -> Path:
    """On three classes with names, by a loss with a setting."""
    root = class_folder(folder / "animals")
    words = ("--task.classes=3", "--task.image_channels=3", "--task.batch_size=8", "--model.optimization.lr=0.01")
    loss = ("--task.loss=Trades", "--task.loss.beta=3", "--task.norm=L2")
    return folder / succeeded(*FIT, "--task.root", root, *words, *loss).run


def checkpoint(run: Path) -> Path:
    return run / "checkpoints" / "last.ckpt"


def task_of(run: Path) -> Any:
    return JointModule.load_from_checkpoint(checkpoint(run)).eval().task


def test_fit_measures_clean_and_attacked_images(trained: Path) -> None:
    found = {name: column(trained, f"val/{name}") for name in METRICS}
    assert all(len(values) == 1 for values in found.values()), found
    assert found["robust_accuracy"] <= found["clean_accuracy"] and found["clean_accuracy"][0] > 0.3
    losses = column(trained, "train/loss")
    assert len(losses) == 10 and sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert {path.name for path in (trained / "figures").iterdir()} == {"val_attacks.png", "val_convergence.png"}


def test_the_best_may_be_chosen_by_clean_images() -> None:
    best = ("--checkpoint.monitor=val/clean_accuracy", "--checkpoint.mode=max", "--trainer.max_epochs=3")
    run = succeeded(*FIT, *best, "--model.optimization.lr=0.03").run
    accuracies = column(run, "val/clean_accuracy")
    content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert content["epoch"] == accuracies.index(max(accuracies)) and len(set(accuracies)) > 1


@pytest.mark.slow
def test_test_attacks_by_all_means(trained: Path) -> None:
    attacks = ("--task.attacks=[SOLVERS, PGD, SQUARE]", "--task.radii=[0.2]")
    run = succeeded("test", "--ckpt_path", checkpoint(trained), *QUIET, *attacks).run
    (worst,), (none,) = (column(run, f"test/robust_accuracy_{name}") for name in ("worst", "none"))
    for name in ("secant_tracking", "joint_anderson", "joint_broyden", "bilevel_pgd", "pgd", "square"):
        (share,) = column(run, f"test/robust_accuracy_{name}")
        assert worst <= share < none, name
    for name in ("secant_tracking", "pgd"):
        assert worst < column(run, f"test/sweep_{name}_0.2")[0] <= none, name
    assert column(run, "test/robust_accuracy") <= column(run, "test/clean_accuracy")
    (run / "figures" / "robustness.png").stat()

    task = task_of(trained)
    task.data.setup("test")
    image, label, _ = next(iter(task.data.test_dataloader()))
    correct = (ExactClassifier(task.classifier).predict(image).label == label).float()
    assert column(run, "test/clean_accuracy") == [pytest.approx(correct.mean().item())]
    assert none == pytest.approx(correct[:6].mean().item())


def test_without_attacks_test_measures_by_the_solver_of_the_training_alone(trained: Path) -> None:
    run = succeeded("test", "--ckpt_path", checkpoint(trained), *QUIET, "--task.attacks=[]").run
    assert all(column(run, f"test/{name}") for name in METRICS)
    assert "robust_accuracy_" not in (run / "metrics.csv").read_text()
    assert not list(run.rglob("robustness.*"))


OPTIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "mixed": {"loss": Adversarial(clean_weight=0.5)},
    "clean": {"loss": Clean()},
    "Trades": {"loss": Trades(beta=3.0)},
    "Trades with more weight": {"loss": Trades(beta=30.0)},
    "PGD": {"solver": Bilevel(descent=PGD(lr=0.5), max_nfe=50)},
    "unrolled": {"unroll": 3},
    "L-infinity": {"norm": Norm.LINF, "radius": 0.1},
    "radius": {"radius": 0.2},
    "widths": {"widths": [8, 4]},
    "resolution": {"resolution": 8},
    "shift": {"shift": 2},
    "flip": {"flip": True},
    "split": {"split_seed": 1},
}


def second_loss(root: Path, solver: JointSolver = SOLVER, **settings: Any) -> float:
    """Of a training, so that what a setting does to a gradient is in it."""
    torch.manual_seed(0)
    task = Cifar(**{**SETTINGS, "batch_size": 8, **settings})
    trainer = quiet_trainer(root, max_steps=2, limit_val_batches=0)
    trainer.fit(JointModule(task, solver, regularizers=[SpectralPenalty()]), datamodule=task.datamodule())
    return float(trainer.callback_metrics["train/loss"])


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_every_option_has_an_effect_of_its_own_and_a_stronger_attack_a_larger_loss(tmp_path: Path) -> None:
    losses = {name: second_loss(tmp_path, **settings) for name, settings in OPTIONS.items()}
    assert all(0 < value < 20 for value in losses.values())
    assert len(set(losses.values())) == len(OPTIONS), losses
    assert losses["clean"] < losses["mixed"] < losses["as it is"] and losses["radius"] < losses["as it is"]
    assert losses["clean"] < losses["Trades"] < losses["Trades with more weight"]


def assert_described(run: Path, predictions: Path, originals: dict[str, Tensor], names: list[str]) -> None:
    """``NAME.png`` and ``NAME.json`` tell what the network of a run makes of these images."""
    written = {f"{name}.{kind}" for name in originals for kind in ("png", "json")}
    assert {path.name for path in predictions.iterdir()} == written
    exact = ExactClassifier(task_of(run).classifier)
    for name, image in originals.items():
        said = json.loads((predictions / f"{name}.json").read_text())
        with Image.open(predictions / f"{name}.png") as picture:
            pixels_seen = torch.from_numpy(np.asarray(picture, np.float32) / 255)
        attacked = pixels_seen.reshape(*image.shape[1:], -1).movedim(2, 0)
        assert (said["norm"], said["radius"]) == ("L2", RADIUS)
        assert 0.5 * RADIUS < (attacked - image).norm() < RADIUS + image.numel() ** 0.5 / 510 + 1e-6
        for key, seen, tolerance in (("class", image, 1e-3), ("attacked", attacked, 0.05)):
            assert said[key].keys() == {"name", "probability"}
            probabilities, stated = exact(seen[None]).softmax(1)[0], said[key]["probability"]
            assert float(probabilities[names.index(said[key]["name"])]) == pytest.approx(stated, abs=tolerance)
            assert stated >= float(probabilities.max()) - tolerance
        before, after = (float(exact(one[None]).log_softmax(1).max()) for one in (image, attacked))
        assert said["class"]["name"] != said["attacked"]["name"] or after < before


def test_predict_says_what_it_sees_in_images_of_unknown_class(trained: Path, folder: Path) -> None:
    mine = folder / "mine" / "inner"
    mine.mkdir(parents=True)
    originals = {}
    for name, image in zip(("anna", "ben"), pixels(2, seed=5, colours=1), strict=True):
        Image.fromarray(image).save(mine / f"{name}.png")
        originals[name] = torch.from_numpy(image / 255).float()[None]
    run = succeeded("predict", "--ckpt_path", checkpoint(trained), "--task.root=mine", *QUIET[:1]).run
    assert_described(trained, run / "predictions", originals, [str(digit) for digit in range(10)])


def test_predict_calls_the_classes_by_the_names_of_the_training_data(animals: Path, folder: Path) -> None:
    content = torch.load(checkpoint(animals), weights_only=True)
    (names,) = (value["class_names"] for key, value in content["state_dict"].items() if key.endswith("extra_state"))
    assert names == sorted(NAMES) == task_of(animals).class_names
    (folder / "photos").mkdir()
    image = pixels(1, seed=6)[0]
    Image.fromarray(image).save(folder / "photos" / "zoo.png")
    run = succeeded("predict", "--ckpt_path", checkpoint(animals), "--task.root=photos", *QUIET[:1]).run
    original = torch.from_numpy(image / 255).float().movedim(2, 0)
    assert_described(animals, run / "predictions", {"zoo": original}, names)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)


@pytest.mark.usefixtures("bare")
def test_without_torchattacks_test_says_what_to_install_or_to_choose(trained: Path) -> None:
    message = complaint("test", "--ckpt_path", checkpoint(trained), *QUIET)
    assert message.startswith("the attack PGD needs the extra adversarial: pip install 'deqopt[adversarial]'")
    assert "[SOLVERS]" in message


@pytest.mark.usefixtures("bare")
def test_without_torchattacks_everything_else_works(trained: Path) -> None:
    assert column(succeeded(*FIT, "--trainer.limit_train_batches=1").run, "val/robust_accuracy")
    words = ("test", "--ckpt_path", checkpoint(trained), *QUIET, "--task.attacks=[SOLVERS]", "--task.attack_images=2")
    assert column(succeeded(*words).run, "test/robust_accuracy_worst")
    listed = succeeded("tasks").output
    assert re.search(r"^adversarial, cifar\s+Trains an equilibrium classifier", listed, re.M) and "celeba" in listed
    small = ("--task.widths=[4]", "--task.size=8", "--task.resolution=4", "--task.image_channels=1")
    assert succeeded("fit", "--task=celeba", *small, "--trainer.fast_dev_run=true", *QUIET[:1]).status == 0


BAD: dict[str, tuple[tuple[str, ...], str]] = {
    "loss": (("--task.loss=Trads",), r"^--task\.loss: there is no 'Trads' to choose"),
    "setting of a loss": (
        ("--task.loss=Trades", "--task.loss.gamma=3"),
        r"^unknown option --task\.loss\.gamma: .* beta$",
    ),
    "norm": (("--task.norm=L1",), r"^--task\.norm: expected L2, LINF, got 'L1'$"),
    "attack": (("--task.attacks=[PDG]",), r"^--task\.attacks: expected SOLVERS, PGD, .*, AUTOATTACK, got 'PDG'$"),
    "one attack": (("--task.attacks=PGD",), r"^--task\.attacks: expected list, got 'PGD'"),
    "no radius": (("--task.radius=0",), r"^cifar: radius must be larger than 0 in training, .* choose the loss Clean$"),
    "download": (("--task.download=IMAGENET",), r"^--task\.download: expected CIFAR10, CIFAR100, MNIST or null"),
    "nowhere": (("--task.root=nowhere",), r"^nowhere is missing: root should be a folder with a subfolder for every"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options(case: str, folder: Path) -> None:
    words, pattern = BAD[case]
    message = complaint(*FIT, *words)
    assert re.search(pattern, message), message


def test_data_whose_classes_are_others_is_refused_and_part_of_them_is_not(animals: Path, folder: Path) -> None:
    words = ("test", "--ckpt_path", checkpoint(animals), "--task.attacks=[]", *QUIET, "--task.root")
    for left_out, name in (("cat", "first two"), ("ant", "last two")):
        shutil.copytree(folder / "animals", folder / name, ignore=shutil.ignore_patterns(left_out))
    assert task_of(animals).class_names == ["ant", "bee", "cat"]
    assert column(succeeded(*words, "first two").run, "test/clean_accuracy")
    message = complaint(*words, "last two")
    assert re.search(r"^cifar: class 0 is 'bee' in the data and 'ant' in the checkpoint: .* same order$", message)


TINY = ("--task.batch_size=8", "--task.attacks=[]", "--trainer.limit_train_batches=2")


@pytest.mark.skipif(not CIFAR.is_dir(), reason=f"the subset of CIFAR-10 is not in {REAL_DATA}")
def test_cifar_trains_and_its_classes_have_names() -> None:
    words = ("--task.size=32", "--task.image_channels=3", "--task.widths=[4]", "--task.shift=4", "--task.flip=true")
    run = succeeded(*FIT, *TINY, *words, "--task.root", CIFAR).run
    assert column(run, "val/clean_accuracy") and len(column(run, "train/loss")) == 2
    assert {"airplane", "truck"} < set(task_of(run).class_names)


@pytest.mark.skipif(not MNIST.is_dir(), reason=f"MNIST is not in {REAL_DATA}")
def test_mnist_is_unpacked_and_trains(tmp_path: Path) -> None:
    shutil.copytree(MNIST, tmp_path / "MNIST")
    words = ("--task.size=28", "--task.widths=[4]", "--task.resolution=14", "--task.root", tmp_path)
    run = succeeded(*FIT, *TINY, *words, "--task.download=MNIST").run
    assert column(run, "val/clean_accuracy") and task_of(run).class_names == [str(digit) for digit in range(10)]


def found_by(devices: int, root: Path, weights: Path | None = None) -> dict[str, Any]:
    """Trains, unless there are weights, tests and predicts on a folder of three classes; weights and figures."""
    own = {"root": str(root / "animals"), "image_channels": 3, "classes": 3, "batch_size": 8 // devices}
    task = Cifar(**{**SETTINGS, **own, "attacks": [AttackName.SOLVERS], "attack_images": 3})
    module, data = JointModule(task, solver=SOLVER), task.datamodule()
    settings: dict[str, Any] = {"strategy": "ddp", "callbacks": [PredictionWriter()]} if devices > 1 else {}
    trainer = quiet_trainer(root, devices=devices, max_epochs=1, **settings)
    if weights is None:
        trainer.fit(module, datamodule=data)
    else:
        module.load_state_dict(torch.load(weights, weights_only=True)["weights"])
    (figures,) = trainer.test(module, datamodule=data, verbose=False)
    if devices > 1:
        trainer.predict(module, datamodule=data, return_predictions=False)
    return {"weights": module.state_dict(), "figures": dict(figures), "rank": trainer.global_rank}


def worker(root: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore")
    found = found_by(2, root)
    assert "torchattacks" not in sys.modules, "only its attacks import it"
    torch.save(found, root / f"{found.pop('rank')}.pt")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_two_processes_train_together_and_measure_what_one_does(tmp_path: Path) -> None:
    class_folder(tmp_path / "animals")
    python(__file__, tmp_path, cwd=tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    weights = {name: value for name, value in first["weights"].items() if "extra" not in name}
    assert all(torch.equal(value, second["weights"][name]) for name, value in weights.items())
    expected = found_by(1, tmp_path, tmp_path / "0.pt")["figures"]
    assert first["figures"] == second["figures"] == pytest.approx(expected, rel=1e-3, abs=1e-5)
    predicted = [path.stem for path in (tmp_path / "predictions").glob("*.png")]
    assert len(predicted) == 40 == len(list((tmp_path / "predictions").glob("*.json")))


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
