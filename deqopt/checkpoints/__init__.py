"""Checkpoints as files: written completely or not at all, and read only if every bit is unchanged."""

from deqopt.checkpoints.file import copy, previous, read, verified, write
from deqopt.checkpoints.record import Record, finite_number

__all__ = ["Record", "copy", "finite_number", "previous", "read", "verified", "write"]
