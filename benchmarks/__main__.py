"""``python -m benchmarks``: the contests of solvers."""

from benchmarks.solvers.command import main

if __name__ == "__main__":
    main()
