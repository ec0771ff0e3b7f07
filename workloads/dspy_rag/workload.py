"""DSPy's retrieval-augmented question answering as a workload."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lang.runner import ProgramRun
from workloads.base import Job, Outputs, Score, Workload
from workloads.data import DataError
from workloads.dspy_rag.data import Question, RecordedCall, load_calls, load_library
from workloads.dspy_rag.program import answer_from_passages, recorded_call
from workloads.dspy_rag.sample import warmup_library
from workloads.retrieval import KINDS, make_retriever
from workloads.sources import need_at_least, need_one_of

if TYPE_CHECKING:
    from workloads.dspy_rag.pipeline import Compiled


class DSPyRAG(Workload):
    """kind=live: a compiled DSPy program answers questions. kind=recorded: calls that DSPy programs once made.

    The first `n_train` questions compile the program, those after them are asked.
    """

    served_outputs: Sequence[Outputs] = ("recorded", "fixed", "free")

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        kind: str = "live",
        n_train: int = 20,
        n_questions: int | None = 80,
        k: int = 3,
        retriever: str = "bm25",
        n_full_demos: int = 4,
        n_demos: int = 16,
        max_tokens: int = 512,
        temperature: float = 0.0,
        retrieval_seconds: float = 0.0,
        order: str = "recorded",
        max_context_tokens: int | None = None,
        outputs: str = "auto",
    ) -> None:
        """Raises ValueError for a value that isn't allowed."""
        need_one_of("kind", kind, ("live", "recorded"))
        need_one_of("retriever", retriever, KINDS)
        need_one_of("order", order, ("recorded", "by_template"))
        need_at_least(
            n_train=(n_train, 1),
            n_questions=(n_questions, 1),
            k=(k, 1),
            n_full_demos=(n_full_demos, 1),
            n_demos=(n_demos, n_full_demos),
            max_tokens=(max_tokens, 1),
            max_context_tokens=(max_context_tokens, 2),
        )
        if not isinstance(retrieval_seconds, int | float) or not 0 <= retrieval_seconds < 3600:
            raise ValueError(f"retrieval_seconds={retrieval_seconds!r} is not allowed: seconds, from 0 to 3600")
        if not isinstance(temperature, int | float) or not 0 <= temperature <= 10:
            raise ValueError(f"temperature={temperature!r} is not allowed: from 0 to 10")
        self.data_dir = data_dir
        self.kind = kind
        self.n_train = n_train
        self.n_questions = n_questions
        self.k = k
        self.retriever = retriever
        self.n_full_demos = n_full_demos
        self.n_demos = n_demos
        self.max_tokens = max_tokens
        self.temperature = temperature
        self.retrieval_seconds = retrieval_seconds
        self.order = order
        self.max_context_tokens = max_context_tokens
        self.asked_outputs = outputs
        self.rag: Compiled | None = None
        """The compiled program, once loaded; None where calls are replayed."""
        self._jobs: list[Job] = []
        self._asked: dict[str, Question] = {}

    def load(self) -> None:
        self._jobs, self._asked, self.rag = [], {}, None
        if self.kind == "recorded":
            self._load_recorded()
        else:
            self._load_live()

    def jobs(self) -> list[Job]:
        return list(self._jobs)

    def warmup(self) -> list[Job]:
        """Questions of our own to plain prompts, in a namespace of their own."""
        rows, _ = warmup_library()
        calls = [RecordedCall(f"Warm-up. {question}", " ".join(facts), 64) for question, _, facts in rows[:3]]
        return [self._replay(f"warmup/{i}", call, "warmup") for i, call in enumerate(calls)]

    def score(self, finished: Sequence[ProgramRun]) -> Score | None:
        """Share of the questions that are answered as HotpotQA compares answers; recorded calls have no score."""
        if not finished or self.rag is None:
            return None
        right = sum(
            run.status == "done" and self.rag.right(run.state["completion"], self._asked[run.name]) for run in finished
        )
        return Score("exact match", right / len(finished), len(finished))

    def asked(self) -> list[Question]:
        """The questions, in the order of the jobs."""
        return list(self._asked.values())

    def _load_live(self) -> None:
        self.data, questions, passages = load_library(self.data_dir)
        if len(questions) <= self.n_train:
            raise DataError(f"n_train={self.n_train} leaves no question of {len(questions)}; give fewer")
        train, chosen = questions[: self.n_train], questions[self.n_train :][: self.n_questions]
        self.rag = rag = self._compiled(passages, train)
        self._fit(rag, chosen)
        for i, question in enumerate(chosen):
            args = {
                "rag": rag,
                "question": question.question,
                "max_tokens": self.max_tokens,
                "temperature": self.temperature,
                "retrieval_seconds": self.retrieval_seconds,
                "recorded": rag.completion(question),
            }
            name = f"dspy_rag/{i}"
            self._jobs.append(Job(program=answer_from_passages, args=args, name=name, outputs=self.outputs))
            self._asked[name] = question

    def _compiled(self, passages: Sequence[str], train: Sequence[Question]) -> Compiled:
        try:
            from workloads.dspy_rag.pipeline import compiled
        except ImportError as error:
            raise DataError(f"DSPy isn't installed ({error}): pip install 'radixlab[rag]', or kind=recorded") from error
        index = make_retriever(self.retriever, passages)
        return compiled(index, passages, train, self.k, self.n_full_demos, self.n_demos)

    def _fit(self, rag: Compiled, questions: Sequence[Question]) -> None:
        """Drops demonstrations, plain ones first, until the longest prompt and its output have room."""
        if self.max_context_tokens is None:
            return
        found = [(question.question, rag.retrieve(question.question)) for question in questions]
        dropped = 0
        while (
            longest := max(self._tokens_of_chat(rag, question, passages) for question, passages in found)
        ) + self.max_tokens > self.max_context_tokens:
            if not rag.n_demos:
                raise DataError(
                    f"max_context_tokens={self.max_context_tokens} is too few: without any demonstration the longest "
                    f"prompt has {longest} tokens, and its output {self.max_tokens}; lower k or max_tokens"
                )
            rag.drop_a_demo()
            dropped += 1
        if dropped:
            told = f"{dropped} demonstrations dropped for max_context_tokens={self.max_context_tokens}"
            self.data = self.data._replace(note="; ".join(filter(None, (self.data.note, told))))

    def _tokens_of_chat(self, rag: Compiled, question: str, passages: Sequence[str]) -> int:
        """With headings of messages as a plain chat has them: a chat template's own may be a few tokens more."""
        messages = rag.messages(question, passages)
        return self.count_tokens(
            "".join(f"### {role}\n{content}\n\n" for role, content in messages) + "### assistant\n"
        )

    def _load_recorded(self) -> None:
        self.data, calls = load_calls(self.data_dir)
        chosen = list(calls)
        if self.order == "by_template":
            first = {call.template: i for i, call in reversed(list(enumerate(calls)))}
            chosen.sort(key=lambda call: first[call.template])
        if self.max_context_tokens is not None:
            fitting = [call for call in chosen if self._tokens_of(call) <= self.max_context_tokens]
            if left_out := len(chosen) - len(fitting):
                told = f"{left_out} of {len(chosen)} calls left out: longer than {self.max_context_tokens} tokens"
                self.data = self.data._replace(note="; ".join(filter(None, (self.data.note, told))))
            chosen = fitting
        if not chosen:
            raise DataError(f"max_context_tokens={self.max_context_tokens} leaves no recorded call; give more")
        self._jobs = [self._replay(f"dspy_rag/call/{i}", call) for i, call in enumerate(chosen[: self.n_questions])]

    def _tokens_of(self, call: RecordedCall) -> int:
        return self.count_tokens(f"### user\n{call.prompt}\n\n### assistant\n") + min(
            call.max_tokens, max(1, self.count_tokens(call.output))
        )

    def _replay(self, name: str, call: RecordedCall, namespace: str = "") -> Job:
        args = {"prompt": call.prompt, "max_tokens": call.max_tokens, "recorded": call.output}
        return Job(program=recorded_call, args=args, name=name, namespace=namespace, outputs=self.outputs)
