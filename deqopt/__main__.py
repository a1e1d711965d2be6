"""``python -m deqopt`` is the command ``deqopt``."""

from deqopt.cli import main

if __name__ == "__main__":
    main()
