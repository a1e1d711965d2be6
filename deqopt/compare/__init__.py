"""Comparing methods on the same samples: scores, means with intervals, paired differences, tables."""

from deqopt.compare.scores import Estimate, Scores, check_names, log_name
from deqopt.compare.summary import Measure, Summary

__all__ = ["Estimate", "Measure", "Scores", "Summary", "check_names", "log_name"]
