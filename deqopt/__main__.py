"""``python -m deqopt`` is the command ``deqopt``."""

from deqopt.cli import console

if __name__ == "__main__":
    console()
