"""Files of a run, its settings and its data: cut, flipped, zeroed, emptied, removed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

from deqopt.testing.faults.forked import Ended
from deqopt.testing.faults.judgement import REFUSED, no_traceback, refused, whole
from deqopt.testing.faults.outcome import Broken, Outcome, expect
from deqopt.testing.faults.workbench import Case, figures

BLOCK = 512
NOTICED = ("cannot be read", "previous.ckpt")


def cut(path: Path, random: Random) -> None:
    path.write_bytes(path.read_bytes()[: random.randrange(path.stat().st_size)])


def flipped(path: Path, random: Random) -> None:
    data = bytearray(path.read_bytes())
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    path.write_bytes(data)


def zeroed(path: Path, random: Random) -> None:
    data = bytearray(path.read_bytes())
    begin = random.randrange(len(data))
    data[begin : begin + BLOCK] = bytes(len(data[begin : begin + BLOCK]))
    path.write_bytes(data)


def emptied(path: Path, random: Random) -> None:
    path.write_bytes(b"")


def overwritten(path: Path, random: Random) -> None:
    path.write_bytes(random.randbytes(path.stat().st_size))


def extended(path: Path, random: Random) -> None:
    path.write_bytes(path.read_bytes() + random.randbytes(random.randint(1, BLOCK)))


def removed(path: Path, random: Random) -> None:
    path.unlink()


def a_folder(path: Path, random: Random) -> None:
    path.unlink()
    path.mkdir()


Damage = Callable[[Path, Random], None]
DAMAGES: tuple[Damage, ...] = (flipped, flipped, flipped, cut, cut, zeroed, emptied, overwritten, extended, removed)


def a_checkpoint(case: Case) -> None:
    """A damaged checkpoint is found: refused in one line, or, where the newest is asked for, the one before is used.

    What goes unnoticed changes no figure.
    """
    name = case.random.choice(("last", "last", "best"))
    damage = case.random.choice((*DAMAGES, a_folder))
    command = case.random.choice(("fit", "test", "validate"))
    by_path = case.random.random() < 0.3
    case.fault = f"{name}.ckpt {damage.__name__}, then {command} --ckpt_path {'PATH' if by_path else name}"
    path = case.copied() / "checkpoints" / f"{name}.ckpt"
    expected = _measured(case, command, name)
    damage(path, case.random)
    ended = case.command(command, f"--ckpt_path={path if by_path else name}")
    no_traceback(ended)
    if ended.status:
        expect(by_path or name == "best", Outcome.LOST, f"the checkpoint before the last is not used: {ended}")
        refused(ended)
    elif command == "fit":
        whole(case)
    elif not any(words in ended.said for words in NOTICED):
        _compare(_run_of(ended, case), expected)


def settings(case: Case) -> None:
    """Damaged settings are refused in one line, or are settings still."""
    damage = case.random.choice(DAMAGES)
    case.fault = f"config.yaml of a run {damage.__name__}, then fit --config"
    path = case.copied() / "config.yaml"
    damage(path, case.random)
    kept = (f"--trainer.default_root_dir={case.root}", "--trainer.max_epochs=2", "--trainer.accelerator=cpu")
    ended = case.plain("fit", "--config", path, *kept)
    no_traceback(ended)
    if ended.status:
        expect(ended.status == REFUSED, Outcome.OTHER, str(ended))


def what_a_run_wrote(case: Case) -> None:
    """Damage to a run's other files is no matter to whoever goes on from it."""
    damage = case.random.choice((*DAMAGES, a_folder))
    run = case.copied()
    files = sorted(path for path in run.iterdir() if path.is_file() and path.stat().st_size)
    path = case.random.choice(files)
    kind = "tfevents" if "tfevents" in path.name else path.name
    case.fault = f"{kind} of a run {damage.__name__}, then fit --ckpt_path last"
    damage(path, case.random)
    ended = case.command("fit", "--ckpt_path=last")
    no_traceback(ended)
    expect(ended.status == 0, Outcome.LOST, f"the run cannot be resumed: {ended}")
    whole(case)


def data(case: Case) -> None:
    """Damaged data is refused in one line, or makes no difference."""
    damage = case.random.choice((*DAMAGES, a_folder))
    command = case.random.choice(("fit", "test"))
    case.fault = f"images.npz {damage.__name__}, then {command}"
    path = Path(shutil.copy(case.bench.archive, case.folder / "mine.npz"))
    case.copied()
    expected = _measured(case, command, "last")
    damage(path, case.random)
    more = () if command == "fit" else ("--ckpt_path=last",)
    ended = case.command(command, *more, f"--task.root={path}")
    no_traceback(ended)
    if ended.status:
        refused(ended)
    elif command == "fit":
        whole(case)
    else:
        _compare(_run_of(ended, case), expected)


def images(case: Case) -> None:
    """A damaged image among others is named, and the others are used, or all are refused in one line."""
    damage = case.random.choice((cut, zeroed, emptied, overwritten, removed, a_folder))
    command = case.random.choice(("fit", "predict"))
    case.fault = f"an image {damage.__name__}, then {command}"
    folder = Path(shutil.copytree(case.bench.images, case.folder / "mine"))
    path = case.random.choice(sorted(folder.iterdir()))
    case.copied()
    damage(path, case.random)
    more = () if command == "fit" else ("--ckpt_path=last",)
    ended = case.command(command, *more, f"--task.root={folder}")
    no_traceback(ended)
    if damage in (removed, a_folder):
        expect(ended.status == 0, Outcome.OTHER, str(ended))
    elif ended.status:
        expect(path.name in ended.said, Outcome.OTHER, f"{path.name} is not named: {ended}")


def _measured(case: Case, command: str, name: str) -> dict[str, float]:
    """What the command measures for the checkpoint while it is sound."""
    if command == "fit":
        return {}
    return _run_of(case.command(command, f"--ckpt_path={name}"), case)


def _run_of(ended: Ended, case: Case) -> dict[str, float]:
    expect(ended.status == 0, Outcome.OTHER, str(ended))
    runs = sorted(case.root.glob("*/version_*"), key=lambda path: int(path.name.removeprefix("version_")))
    return figures(runs[-1])


def _compare(found: dict[str, float], expected: dict[str, float]) -> None:
    different = [name for name, value in expected.items() if found.get(name) != value and "per_second" not in name]
    if different:
        raise Broken(Outcome.SILENT, f"figures differ, and nothing was said: {', '.join(different)}")
