"""How a run gets on, on the terminal: a bar where there is one, nothing in a log file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from experiments.systems.base import Live


class Bar:
    """Programs done, hit rate and tokens a second of the run under way."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            console=console,
            refresh_per_second=4,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._shown_at = 0.0

    def begin(self, title: str, programs: int) -> None:
        self._progress.start()
        self._task = self._progress.add_task(title, total=programs, figures="")
        self._shown_at = 0.0

    def step(self, done: int, live: Live, elapsed: float) -> None:
        if self._task is None or elapsed - self._shown_at < 0.2:
            return
        self._shown_at = elapsed
        prompt = live.cached + live.computed
        hit_rate = f"hit rate {live.cached / prompt:.1%}" if prompt else ""
        tokens = f"{(prompt + live.output) / elapsed:,.0f} tokens/s" if elapsed > 0 else ""
        self._progress.update(self._task, completed=done, figures=f"{hit_rate}  {tokens}")

    def end(self) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        self._progress.stop()
