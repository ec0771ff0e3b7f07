"""What can be done to a graph before it runs. Each pass is optional and says what it changed.

program.compile(passes=[passes.common_calls(), passes.dead_code(), passes.prefetch()])
"""

from lang.passes.base import Pass, Report

__all__ = ["Pass", "Report"]
