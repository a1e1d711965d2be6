"""What ``python -m benchmarks`` does: see ``--help``."""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.solvers.peers import INSTALL, torchdeq_is_installed
from benchmarks.solvers.program import FULL, QUICK, Part, run
from benchmarks.solvers.report import write


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures every strategy of deqopt against every other, against the same problems solved with "
        "torchdeq, against the joint method as published, and against the bare cost of one evaluation: in one run, "
        "on the same trained models and the same images. Trains the models first (about four minutes on one core) and "
        "keeps them in the output folder. Writes results.md, results.json, and a table and two pictures a contest.",
    )
    parser.add_argument(
        "--only", action="append", choices=[part.value for part in Part], help="one part; may be given several times"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a minute or two, to see that it runs: without decoder-b, and figures mean little",
    )
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu (default), cuda, cuda:1")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="divides the images and starts every run (default 0)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parents[1] / "out",
        help="folder for results and models (benchmarks/out)",
    )
    chosen = parser.parse_args(argv)
    if chosen.threads < 1:
        parser.error(f"--threads must be at least 1, got {chosen.threads}")
    if chosen.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this machine has no CUDA device that torch can use")
    return chosen


def main(argv: Sequence[str] | None = None) -> None:
    chosen = arguments(argv)
    torch.set_num_threads(chosen.threads)
    if not torchdeq_is_installed():
        print(INSTALL, flush=True)
    started = time.perf_counter()
    extent = QUICK if chosen.quick else FULL
    parts = [Part(name) for name in chosen.only] if chosen.only else extent.parts
    text = ""
    setting = {
        "device": torch.cuda.get_device_name(chosen.device) if chosen.device.type == "cuda" else platform.machine(),
        "threads": chosen.threads,
        "seed": chosen.seed,
        "images": extent.test,
        "repeats": extent.repeats,
        "torch": torch.__version__,
        "quick": chosen.quick,
    }
    for results in run(parts, extent, chosen.out, chosen.device, chosen.seed):
        text = write(results, chosen.out, {**setting, "seconds": round(time.perf_counter() - started)})
    print(text)
    print(f"written to {chosen.out}: results.md, results.json and pictures")
