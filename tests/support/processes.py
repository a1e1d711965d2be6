"""Programs in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from paths import ROOT, SUPPORT

TIMEOUT = 600


def environment(**variables: str) -> dict[str, str]:
    """That of this process, with one thread, the checkout and the modules of the tests; no seed that a test left."""
    path = os.pathsep.join(filter(None, (str(ROOT), str(SUPPORT), os.environ.get("PYTHONPATH"))))
    kept = {name: value for name, value in os.environ.items() if name != "PL_GLOBAL_SEED"}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **variables}


def python(
    *words: object, cwd: Path | None = None, status: int = 0, **variables: str
) -> subprocess.CompletedProcess[str]:
    """``python WORD ...``, which must end with this status and in time."""
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(
        command, cwd=cwd, env=environment(**variables), timeout=TIMEOUT, capture_output=True, text=True, check=False
    )
    assert done.returncode == status, (done.returncode, done.stdout[-1000:], done.stderr[-3000:])
    return done
