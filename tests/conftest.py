"""One thread and one seed for every test."""

import signal
import threading
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def heeded_signals() -> None:
    """Signals as of a terminal: started in the background, Python ignores Ctrl-C, and so would what a test starts."""
    if threading.current_thread() is threading.main_thread():
        for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
            if signal.getsignal(number) is signal.SIG_IGN:
                signal.signal(number, handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("learn2learn") and find_spec("learn2learn") is None:
        pytest.skip("learn2learn is not installed: see make test-learn2learn")
