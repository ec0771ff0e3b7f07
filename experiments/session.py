"""One invocation of run.py: composed configurations in, folders of results out, errors told in a line or two."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from engine.policies.base import PolicyError
from experiments.arguments import admit_files, explain, is_composition_error
from experiments.config import RunConfig
from experiments.load import JobError
from experiments.outputs import OutputError, check_writable, find_finished, new_folder, read_summary, write_whole
from experiments.progress import Bar
from workloads.registry import WorkloadError

if TYPE_CHECKING:
    from experiments.cell import Cell
    from experiments.metrics import Measured


class SetupError(RuntimeError):
    """A cell could not be set up: what it names is wrong or missing. Says which cell and why."""


TOLD = (SetupError, OutputError, WorkloadError, JobError, PolicyError)
"""What is wrong with what the user gave: the message suffices."""


class Session:
    """What the cells of one command line share: the terminal, the exit code, the scratch folder."""

    def __init__(self, argv: Sequence[str]) -> None:
        self.argv = list(argv)
        self.exit_code = 0
        self.console = Console(highlight=False, soft_wrap=True)
        self.errors = Console(stderr=True, highlight=False, soft_wrap=True)
        self._debug = "debug=true" in (argument.lower() for argument in argv)
        self._announced: set[str] = set()
        self._scratch = tempfile.mkdtemp(prefix="radixlab-")
        OmegaConf.register_new_resolver("scratch", lambda: self._scratch, replace=True)

    def arguments(self) -> list[str]:
        """The command line as Hydra shall see it. Raises WorkloadError for a workload file that can't be used."""
        return admit_files(self.argv[1:])

    @contextmanager
    def reporting(self, debug: bool) -> Iterator[None]:
        """Errors become a line or two and an exit code; bugs, and everything with `debug`, keep their traceback."""
        self._debug |= debug
        try:
            yield
        except KeyboardInterrupt:
            self._say("interrupted: the cells finished so far are kept, the one under way left nothing")
            self.exit_code = 130
        except Exception as error:
            self._fail(error)
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def run(self, composed: DictConfig) -> None:
        """One job of Hydra's. A cell that fails doesn't stop the others of a sweep."""
        try:
            overrides = list(HydraConfig.get().overrides.task)
            config = _parse(composed)
            each = [_with_cell(overrides, cell) for cell in config.cells] or [overrides]
            configs = [_parse(compose("config", given)) for given in each] if config.cells else [config]
            sweep = HydraConfig.get().mode == RunMode.MULTIRUN
            folders = self._run_cells(configs, each, skip_finished=sweep and not config.force)
            if len(folders) > 1:
                self._compare(folders, config)
        except Exception as error:
            self._fail(error)

    def _run_cells(
        self, configs: Sequence[RunConfig], overrides: Sequence[Sequence[str]], skip_finished: bool
    ) -> list[Path]:
        from experiments.environment import environment

        folders: dict[int, Path] = {}
        here = environment()
        for i, config in enumerate(configs):
            done = find_finished(config.outputs, config.workload_label, config.policy_label, config.hash)
            if skip_finished and done is not None:
                then = read_summary(done)["environment"].get("git")
                at = "" if then == here["git"] else f" (at commit {str(then)[:10]}, now {str(here['git'])[:10]})"
                self.console.print(f"skipped, finished already: {done}{at}; force=true runs it again")
                folders[i] = done
            else:
                check_writable(config.outputs)
        todo = [i for i in range(len(configs)) if i not in folders]
        cells = {i: self._set_up(configs[i]) for i in todo}
        measured = self._measure(cells)
        for i, cell in cells.items():
            command = _command(configs[i], overrides[i])
            folder = self._leave(cell, measured[i], here, command)
            if folder is not None:
                folders[i] = folder
        return [folders[i] for i in sorted(folders)]

    def _set_up(self, config: RunConfig) -> Cell:
        """Loads data and model. Raises SetupError for what the configuration names wrongly."""
        from experiments.cell import Cell
        from experiments.systems.base import make_system
        from workloads.registry import load_workload

        try:
            workload = load_workload(config.workload, config.workload_args)
            system = make_system(config)
            if system.count_tokens is not None:
                workload.count_tokens = system.count_tokens
            workload.choose_outputs(workload.asked_outputs, system.random_weights)
            workload.load()
        except (ValueError, TypeError, LookupError, OSError, PolicyError) as error:
            raise SetupError(f"{config.workload_label} with {config.policy_label}: {error}") from error
        origin, path, _, note = workload.data
        where = " ".join(part for part in (path, f"({note})" if note else "") if part)
        line = f"data of {config.workload_label}: {origin} {where}".rstrip()
        if line not in self._announced:
            self._announced.add(line)
            self.console.print(line, markup=False)
        return Cell(config, workload, system)

    def _measure(self, cells: dict[int, Cell]) -> dict[int, list[Measured]]:
        from experiments.cell import measure, rounds, warm_up

        bar = Bar(self.console)
        try:
            for cell in cells.values():
                if cell.config.warmup:
                    warm_up(cell, bar)
            measured: dict[int, list[Measured]] = {i: [] for i in cells}
            order = list(cells)
            seed = cells[order[0]].config.seed if order else 0
            for turn in rounds(len(order), [cells[i].config.repeats for i in order], seed):
                i = order[turn.cell]
                measured[i].append(measure(cells[i], turn.repeat, bar))
            return measured
        finally:
            bar.end()

    def _leave(self, cell: Cell, measured: Sequence[Measured], here: dict[str, Any], command: str) -> Path | None:
        """Writes the folder and prints the figures. Where it can't be written, the summary goes to the terminal."""
        from experiments.result import files_of, summary_of

        config = cell.config
        summary = summary_of(cell, measured, here, command)
        folder = new_folder(config.outputs, config.workload_label, config.policy_label, config.hash, datetime.now())
        try:
            write_whole(folder, files_of(cell, measured, summary))
        except OutputError as error:
            self._say(f"error: {error}")
            self._say("the summary of the run follows on standard output")
            self.console.print_json(json.dumps(summary))
            self.exit_code = 1
            return None
        self._show(summary, measured)
        self.console.print(f"results: {folder}\nreport:  {folder / 'report.html'}")
        return folder

    def _show(self, summary: dict[str, Any], measured: Sequence[Measured]) -> None:
        from experiments.report import HEADLINE, LATENCY_ROWS, number

        table = Table(title=f"{summary['workload']} · {summary['policy']}", title_justify="left", show_header=False)
        for key, name in HEADLINE:
            table.add_row(name, number(summary[key], key))
        for key, name in LATENCY_ROWS:
            values = (f"{part} {number(value, key)}" for part, value in summary[key].items() if value is not None)
            table.add_row(name, "  ".join(values) or "–")
        if summary["score"]:
            table.add_row(summary["score"]["name"], f"{summary['score']['value']:.3f} (n = {summary['score']['n']})")
        self.console.print(table)
        if summary["errors"]:
            first = next(e for one in measured for e in one.programs["error"] if isinstance(e, str))
            self.exit_code = 1 if summary["errors"] == summary["programs"] else self.exit_code
            self._say(f"{summary['errors']} of {summary['programs']} programs failed; the first: {first}")

    def _compare(self, folders: Sequence[Path], config: RunConfig) -> None:
        from experiments.compare import compare_and_write

        report = compare_and_write(folders, config.outputs / "compare", self.console, anyway=True)
        self.console.print(f"comparison: {report}")

    def _fail(self, error: Exception) -> None:
        self.exit_code = 1
        known = is_composition_error(error) or isinstance(
            error, SetupError | OutputError | WorkloadError | JobError | PolicyError
        )
        if self._debug or not known:
            traceback.print_exception(error, file=sys.stderr)
        else:
            text = explain(error, self.argv[1:]) if is_composition_error(error) else " ".join(str(error).split())
            self._say(f"error: {text}")
            if isinstance(error, PolicyError) or isinstance(error.__cause__, PolicyError):
                self._say("debug=true shows where")

    def _say(self, text: str) -> None:
        self.errors.print(text, markup=False)


def _parse(composed: DictConfig) -> RunConfig:
    return RunConfig.parse(OmegaConf.to_container(composed, resolve=True))  # type: ignore[arg-type]


def _with_cell(overrides: Sequence[str], cell: Sequence[str]) -> list[str]:
    """The command line's overrides with those of one of its cells, which win."""
    given = {text.split("=")[0]: text for text in (*overrides, "cells=[]", *cell)}
    return list(given.values())


def _command(config: RunConfig, overrides: Sequence[str]) -> str:
    """The command line that runs this cell again."""
    shown = [f"workload={config.workload}" if text.startswith("workload=") else text for text in overrides]
    return shlex.join(["python", "run.py", *shown])
