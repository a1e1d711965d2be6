"""The fault harness: ``python -m deqopt.testing.faults`` injects faults into tiny runs and judges how they end.

What is promised stands in ``docs/reliability.md``. :mod:`~deqopt.testing.faults.catalogue` lists the classes of faults.
"""
