"""Two processes, one of which cannot write: neither waits for the other for ever, and both say the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from deqopt.checkpoints import read
from paths import SUPPORT

TIMEOUT = 300


def test_a_full_disk_is_met_by_all_processes_alike(tmp_path: Path) -> None:
    """Full at step 2, where the run goes on, and at the last one, 4, which is an error in both."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SUPPORT)}
    command = [sys.executable, str(SUPPORT / "ddp_full_disk.py"), str(tmp_path), "2", "4"]
    done = subprocess.run(command, env=environment, timeout=TIMEOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    last = tmp_path / "checkpoints" / "last.ckpt"
    expected = f"{last} could not be written: No space left on device"
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == [expected] * 2
    assert read(last)["global_step"] == 3
