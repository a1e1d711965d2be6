"""The contract of a plugin: what an author of a solver or a task runs on it, in a test of theirs.

from deqopt.testing import check_solver, check_task

def test_solver(): check_solver(MySolver(max_nfe=200))
def test_task(): check_task(MyTask(size=8))
"""

from deqopt.testing.report import ContractError, Report
from deqopt.testing.solver import check_solver
from deqopt.testing.task import check_task

__all__ = ["ContractError", "Report", "check_solver", "check_task"]
