"""The words of the command line; without imports, for the commands that answer at once."""

RUNS = ("fit", "validate", "test", "predict")
CHOICES = ("task", "solver", "adjoint")
SECTIONS = ("trainer", "model", "checkpoint")
