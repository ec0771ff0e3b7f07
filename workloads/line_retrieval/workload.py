"""Line retrieval as a workload."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence

from lang.runner import ProgramRun
from workloads.base import DataSource, Job, Outputs, Score, Workload
from workloads.data import DataError, digest
from workloads.encoding import ENCODINGS
from workloads.line_retrieval.lines import MOST_LINES, Line, cut_in, made_lines
from workloads.line_retrieval.program import INSTRUCTION, find_line, question_text
from workloads.sources import need_at_least, need_one_of


class LineRetrieval(Workload):
    """Registers of `n_lines` lines in `n_segments` segments, of each `n_questions` lines to be found, a job each."""

    served_outputs: Sequence[Outputs] = ("recorded", "fixed", "free")

    def __init__(
        self,
        *,
        n_registers: int = 1,
        n_lines: int = 600,
        n_segments: int = 4,
        n_questions: int = 50,
        encoding: str = "concatenated",
        max_tokens: int = 16,
        max_context_tokens: int | None = None,
        seed: int = 0,
        outputs: str = "auto",
    ) -> None:
        """Raises ValueError for a value that isn't allowed."""
        need_one_of("encoding", encoding, ENCODINGS)
        need_at_least(
            n_registers=(n_registers, 1),
            n_segments=(n_segments, 1),
            n_lines=(n_lines, n_segments),
            n_questions=(n_questions, 1),
            max_tokens=(max_tokens, 1),
            max_context_tokens=(max_context_tokens, 32),
            seed=(seed, 0),
        )
        if n_lines > MOST_LINES:
            raise ValueError(f"n_lines={n_lines} is not allowed: there are names for {MOST_LINES} lines")
        self.n_registers = n_registers
        self.n_lines = n_lines
        self.n_segments = n_segments
        self.n_questions = n_questions
        self.encoding = encoding
        self.max_tokens = max_tokens
        self.max_context_tokens = max_context_tokens
        self.seed = seed
        self.asked_outputs = outputs
        self._jobs: list[Job] = []
        self._numbers: dict[str, str] = {}

    def load(self) -> None:
        self._jobs, self._numbers = [], {}
        registers = [self._fitting(made_lines(self.n_lines, f"{self.seed}/{i}")) for i in range(self.n_registers)]
        n_lines = sum(map(len, registers))
        note = f"{n_lines} lines made by rule for seed={self.seed}, as those of the original are"
        if left_out := self.n_registers * self.n_lines - n_lines:
            note += f"; {left_out} left out for max_context_tokens={self.max_context_tokens}"
        self.data = DataSource("sample", "", digest({"lines": json.dumps(registers).encode()}), note)
        for i, lines in enumerate(registers):
            if len(lines) < self.n_questions:
                raise DataError(f"n_questions={self.n_questions}, but only {len(lines)} lines to ask about; give fewer")
            parts = part_texts(lines, self.n_segments)
            for j, line in enumerate(random.Random(f"questions/{self.seed}/{i}").sample(lines, self.n_questions)):
                job = self._job(f"line_retrieval/{i}/{j}", parts, line)
                self._jobs.append(job)
                self._numbers[job.name] = line.number

    def jobs(self) -> list[Job]:
        return list(self._jobs)

    def warmup(self) -> list[Job]:
        """A few other lines, behind another beginning of the first segment and in a namespace of its own."""
        lines = made_lines(2 * self.n_segments, "warm-up")
        first, *others = part_texts(lines, self.n_segments)
        return [self._job("warmup/0", [f"Warm-up.\n{first}", *others], lines[0], "warmup")]

    def score(self, finished: Sequence[ProgramRun]) -> Score | None:
        """Share of the answers whose first number is the right one; a failed one counts as wrong."""
        if not finished:
            return None
        right = sum(
            run.status == "done" and first_number(run.state["answer"]) == self._numbers[run.name] for run in finished
        )
        return Score("exact match", right / len(finished), len(finished))

    def _job(self, name: str, parts: Sequence[str], line: Line, namespace: str = "") -> Job:
        args = {
            "parts": parts,
            "name": line.name,
            "encoding": self.encoding,
            "max_tokens": self.max_tokens,
            "recorded": f" {line.number}.",
        }
        return Job(program=find_line, args=args, name=name, namespace=namespace, outputs=self.outputs)

    def _fitting(self, lines: list[Line]) -> list[Line]:
        """As many as leave room for the question and the answer."""
        if self.max_context_tokens is None:
            return lines
        longest = max((line.name for line in lines), key=lambda name: self.count_tokens(question_text(name)))
        room = self.max_context_tokens - self.max_tokens
        room -= self.count_tokens(INSTRUCTION) + self.count_tokens(question_text(longest))
        n = 0
        for line in lines:
            room -= self.count_tokens(line.text)
            if room < 0:
                break
            n += 1
        if n < self.n_segments:
            raise DataError(
                f"max_context_tokens={self.max_context_tokens} has room for {n} lines: give more, or fewer n_segments"
            )
        return lines[:n]


def part_texts(lines: list[Line], n_parts: int) -> list[str]:
    return ["".join(line.text for line in part) for part in cut_in(lines, n_parts)]


def first_number(text: str) -> str:
    """Empty when there is none."""
    found = re.search(r"\d+", text)
    return found[0] if found else ""
