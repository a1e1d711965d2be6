"""Every strategy against every other, against torchdeq and against one bare evaluation: ``python -m benchmarks``."""
