"""What can be done to a graph before it runs. Each pass is optional and says what it changed.

program.compile(passes=[passes.common_calls(), passes.dead_code(), passes.prefetch()])
"""

from lang.passes.base import Pass, Report
from lang.passes.common_calls import common_calls
from lang.passes.dead_code import dead_code
from lang.passes.instructions import forced_text, one_call_for_siblings, select_by_decoding, speculate
from lang.passes.movement import code_movement
from lang.passes.prefetching import prefetch
from lang.passes.tuning import Table, tune, tuned

__all__ = [
    "Pass",
    "Report",
    "Table",
    "code_movement",
    "common_calls",
    "dead_code",
    "forced_text",
    "one_call_for_siblings",
    "prefetch",
    "select_by_decoding",
    "speculate",
    "tune",
    "tuned",
]
