"""Signals and exceptions, at every place of a run: what is left behind goes on as if nothing had happened."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.plugins.environments import SLURMEnvironment
from torch.utils.data import StackDataset

from deqopt import JointModule
from deqopt.callbacks import Interruption, RunCheckpoint
from deqopt.data.epochs import EpochOrder, EpochSamples, epochs_of
from deqopt.data.loader import EpochLoader
from deqopt.signals import Interrupted
from deqopt.solvers import Tracking
from hooks import On
from tiny_task import Tiny, quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*ended before the epoch ended:UserWarning")

EPOCHS = 3
HOOKS = (
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_before_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_validation_start",
    "on_validation_batch_start",
    "on_validation_batch_end",
    "on_validation_end",
    "on_train_epoch_end",
)
ONCE_AN_EPOCH = ("on_train_epoch_start", "on_train_epoch_end", "on_validation_start", "on_validation_end")
PLACES = [(hook, call) for hook in HOOKS for call in ((1,) if hook in ONCE_AN_EPOCH else (0, 4))]
NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def fault(hook: str, call: int, what: Callable[[], object], sanity: bool = False) -> On:
    """Does something when a hook is called for the nth time."""
    calls = count()

    def called(trainer: Trainer, *_: Any) -> None:
        if trainer.sanity_checking == sanity and next(calls) == call:
            what()

    return On(**{hook: called})


class Shuffled(LightningDataModule):
    """Batches of 4, for training in an order of its own in every epoch."""

    def __init__(self, y: torch.Tensor) -> None:
        super().__init__()
        index = list(range(len(y)))
        self._samples = EpochSamples(StackDataset(y=y, index=index), index, seed=0)

    def train_dataloader(self) -> EpochLoader:
        order = EpochOrder(len(self._samples), 0, epochs_of(self.trainer))
        return EpochLoader(self._samples, batch_size=4, sampler=order)

    def val_dataloader(self) -> EpochLoader:
        return EpochLoader(self._samples, batch_size=4)

    test_dataloader = predict_dataloader = val_dataloader


class Small(Tiny):
    """With noise on its start."""

    def datamodule(self) -> LightningDataModule:
        return Shuffled(self.y)

    def start(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        z0, x0 = super().start(batch)
        return z0 + 0.1 * torch.randn_like(z0), x0


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def fail() -> None:
    raise MemoryError("none is left")


def module() -> JointModule:
    torch.manual_seed(0)
    return JointModule(Small(samples=12), solver=Tracking(max_nfe=6, step_size=0.5))


def run(command: str, folder: Path, *faults: Callback, resume: Path | None = None, **settings: Any) -> JointModule:
    ran = module()
    given = {"max_epochs": EPOCHS, "enable_checkpointing": True, **settings}
    trainer = quiet_trainer(folder, callbacks=[*faults, Interruption(), RunCheckpoint()], **given)
    getattr(trainer, command)(ran, datamodule=ran.task.datamodule(), ckpt_path=resume)
    return ran


train = partial(run, "fit")


def last(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    train(folder)
    return torch.load(last(folder), weights_only=True)


def assert_goes_on(folder: Path, uninterrupted: dict[str, Any]) -> None:
    before = torch.load(last(folder), weights_only=True)
    again = folder / "again"
    train(again, resume=last(folder))
    ended = torch.load(last(again), weights_only=True) if last(again).exists() else before
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        torch.testing.assert_close(ended[part], uninterrupted[part], rtol=0, atol=0, msg=part)


@pytest.mark.parametrize("what", ["signal", "exception"])
@pytest.mark.parametrize(("hook", "call"), PLACES)
def test_the_end_anywhere_in_training_leaves_a_run_that_goes_on(
    hook: str, call: int, what: str, tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    number = NUMBERS[HOOKS.index(hook) % 3]
    with pytest.raises(Interrupted if what == "signal" else MemoryError) as ended:
        train(tmp_path, fault(hook, call, partial(send, number) if what == "signal" else fail))
    assert str(ended.value) == "none is left" or ended.value.status == 128 + number  # type: ignore[union-attr]
    assert_goes_on(tmp_path, uninterrupted)


STAGES = {"validate": "on_validation_batch_end", "test": "on_test_batch_end", "predict": "on_predict_batch_end"}


@pytest.mark.parametrize("command", STAGES)
@pytest.mark.parametrize("what", [partial(send, signal.SIGTERM), fail, None], ids=["signal", "exception", "nothing"])
def test_nothing_is_written_but_in_training(command: str, what: Any, tmp_path: Path) -> None:
    with pytest.raises((Interrupted, MemoryError)) if what else nullcontext():
        run(command, tmp_path, fault(STAGES[command], 1, what or (lambda: None)))
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("what", [partial(send, signal.SIGTERM), fail], ids=["signal", "exception"])
def test_nothing_is_written_before_training(what: Any, tmp_path: Path) -> None:
    with pytest.raises((Interrupted, MemoryError)):
        train(tmp_path, fault("on_validation_batch_end", 0, what, sanity=True), num_sanity_val_steps=2)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    def twice() -> None:
        send(signal.SIGINT)
        send(signal.SIGINT)
        pytest.fail("the second one came back")

    with pytest.raises(Interrupted) as ended:
        train(tmp_path, fault("on_train_batch_start", 1, twice))
    assert ended.value.status == 130 and not last(tmp_path).exists()


@pytest.mark.parametrize("hook", ["on_test_batch_start", "on_test_start"])
def test_a_signal_that_is_swallowed_ends_the_run_all_the_same(hook: str, tmp_path: Path) -> None:
    def swallow() -> None:
        with suppress(BaseException):
            send(signal.SIGTERM)

    reached: list[int] = []
    after = fault("on_test_batch_end", 1, lambda: reached.append(1))
    with pytest.raises(Interrupted):
        run("test", tmp_path, fault(hook, 0, swallow), after)
    assert not reached


def test_handlers_are_put_back_and_those_that_ignore_stay(tmp_path: Path) -> None:
    before = {number: signal.getsignal(number) for number in NUMBERS}
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        train(tmp_path, fault("on_train_batch_start", 1, partial(send, signal.SIGHUP)))
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, ignored)
    with pytest.raises(MemoryError):
        train(tmp_path / "fails", fault("on_train_batch_start", 1, fail))
    assert {number: signal.getsignal(number) for number in NUMBERS} == before


def test_weights_that_are_not_finite_replace_none(tmp_path: Path) -> None:
    def spoil(trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if trainer.global_step == 4:
            next(module.parameters()).data.fill_(torch.nan)
            fail()

    with pytest.warns(UserWarning, match="became NaN or infinite"), pytest.raises(MemoryError):
        train(tmp_path, On(on_before_zero_grad=spoil))
    saved = torch.load(last(tmp_path), weights_only=True)
    assert saved["global_step"] == 3 and all(value.isfinite().all() for value in saved["state_dict"].values())


def test_slurm_requeues_between_two_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, Any]
) -> None:
    """Lightning's own handler would save in the midst of the backward pass."""
    commands: list[list[str]] = []

    def requeue(words: list[str]) -> int:
        commands.append(words)
        send(signal.SIGTERM)  # as SLURM does
        return 0

    monkeypatch.setattr("lightning.pytorch.trainer.connectors.signal_connector.call", requeue)
    for name in ("NTASKS", "NTASKS_PER_NODE", "NNODES"):
        monkeypatch.setenv(f"SLURM_{name}", "1")
    for name in ("PROCID", "LOCALID", "NODEID"):
        monkeypatch.setenv(f"SLURM_{name}", "0")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    requeued = fault("on_before_optimizer_step", 4, partial(send, signal.SIGUSR1))
    with pytest.raises(Interrupted):
        train(tmp_path, requeued, plugins=[SLURMEnvironment(auto_requeue=True)])
    assert commands == [["scontrol", "requeue", "7"]]
    (saved,) = tmp_path.glob("hpc_ckpt_*.ckpt")
    assert torch.load(saved, weights_only=True)["global_step"] == 5
    saved.rename(tmp_path / "checkpoints" / "last.ckpt")
    assert_goes_on(tmp_path, uninterrupted)
