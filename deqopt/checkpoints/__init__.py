"""Checkpoints as files: written whole or not at all, read only where every bit is as it was written."""

from deqopt.checkpoints.file import copy, previous, read, verified, write
from deqopt.checkpoints.record import Record, finite_number

__all__ = ["Record", "copy", "finite_number", "previous", "read", "verified", "write"]
