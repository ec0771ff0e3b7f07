"""Questions about long documents as a workload."""

from __future__ import annotations

import random
from collections.abc import Sequence

from lang.runner import ProgramRun
from workloads.base import Job, Outputs, Score, Workload
from workloads.data import DataError
from workloads.encoding import ENCODINGS
from workloads.long_doc_qa.data import CORPORA, Document, load_documents
from workloads.long_doc_qa.program import ask_document, beginning_text, part_texts, question_text
from workloads.long_doc_qa.questions import Asked, normalised, questions, segments
from workloads.long_doc_qa.sample import warmup_document
from workloads.sources import need_at_least, need_one_of


class LongDocQA(Workload):
    """The first `n_segments` segments of each document, and `n_questions` questions about them, a job each.

    Documents that have fewer segments aren't used.
    """

    served_outputs: Sequence[Outputs] = ("recorded", "fixed", "free")

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        corpus: str = "wikipedia_cities",
        n_documents: int | None = 2,
        n_segments: int = 10,
        segment_tokens: int = 1100,
        n_questions: int = 10,
        encoding: str = "concatenated",
        max_tokens: int = 16,
        max_context_tokens: int | None = None,
        seed: int = 0,
        outputs: str = "auto",
    ) -> None:
        """Raises ValueError for a value that isn't allowed."""
        need_one_of("corpus", corpus, tuple(CORPORA))
        need_one_of("encoding", encoding, ENCODINGS)
        need_at_least(
            n_documents=(n_documents, 1),
            n_segments=(n_segments, 1),
            segment_tokens=(segment_tokens, 16),
            n_questions=(n_questions, 1),
            max_tokens=(max_tokens, 4),
            max_context_tokens=(max_context_tokens, 32),
            seed=(seed, 0),
        )
        self.data_dir = data_dir
        self.corpus = corpus
        self.n_documents = n_documents
        self.n_segments = n_segments
        self.segment_tokens = segment_tokens
        self.n_questions = n_questions
        self.encoding = encoding
        self.max_tokens = max_tokens
        self.max_context_tokens = max_context_tokens
        self.seed = seed
        self.asked_outputs = outputs
        self._jobs: list[Job] = []
        self._answers: dict[str, str] = {}

    def load(self) -> None:
        self._jobs, self._answers = [], {}
        self.data, documents = load_documents(self.data_dir, self.corpus)
        cut = 0
        used = 0
        for document in documents:
            if used == self.n_documents:
                break
            found = segments(document.text, self.segment_tokens, self.n_segments, self.count_tokens)
            if len(found) < self.n_segments:
                continue
            fitting = self._fitting(document, found)
            cut += len(found) - len(fitting)
            self._add(used, document, fitting)
            used += 1
        if used < (self.n_documents or 1):
            raise DataError(
                f"only {used} of {len(documents)} documents have n_segments={self.n_segments} segments of "
                f"{self.segment_tokens} tokens; give fewer n_documents, n_segments or segment_tokens"
            )
        if cut:
            told = f"{cut} segments left out for max_context_tokens={self.max_context_tokens}"
            self.data = self.data._replace(note="; ".join(filter(None, (self.data.note, told))))

    def jobs(self) -> list[Job]:
        return list(self._jobs)

    def warmup(self) -> list[Job]:
        """A short document of our own, in a namespace of its own."""
        title, text = warmup_document()
        args = self._args(f"Warm-up. {title}", [text[:200], text[200:400]], Asked("Which harbour is it?", "Warm Bay"))
        return [Job(program=ask_document, args=args, name="warmup/0", namespace="warmup", outputs=self.outputs)]

    def score(self, finished: Sequence[ProgramRun]) -> Score | None:
        """Share of the answers that begin with the right words, case and punctuation aside; a failed one is wrong."""
        if not finished:
            return None
        right = sum(
            run.status == "done"
            and f"{normalised(run.state['answer'])} ".startswith(f"{normalised(self._answers[run.name])} ")
            for run in finished
        )
        return Score("right words", right / len(finished), len(finished))

    def _add(self, number: int, document: Document, found: Sequence[str]) -> None:
        rng = random.Random(f"{self.seed}/{document.title}")
        asked = questions(found, self.n_questions, rng, self.count_tokens, self.max_tokens)
        if len(asked) < self.n_questions:
            raise DataError(
                f"{document.title}: n_questions={self.n_questions}, but its segments have {len(asked)} sentences that "
                "can be asked about; give fewer questions or more segments"
            )
        for i, one in enumerate(asked):
            name = f"long_doc_qa/{number}/{i}"
            args = self._args(document.title, found, one)
            self._jobs.append(Job(program=ask_document, args=args, name=name, outputs=self.outputs))
            self._answers[name] = one.answer

    def _args(self, title: str, found: Sequence[str], asked: Asked) -> dict[str, object]:
        return {
            "beginning": beginning_text(title),
            "parts": part_texts(found),
            "question": asked.question,
            "encoding": self.encoding,
            "max_tokens": self.max_tokens,
            "recorded": f" {asked.answer}",
        }

    def _fitting(self, document: Document, found: Sequence[str]) -> Sequence[str]:
        """As many segments as leave room for the longest question that can be asked of them, and its answer."""
        most = self.max_context_tokens
        if most is None:
            return found
        fixed = self.count_tokens(beginning_text(document.title)) + self.max_tokens
        sizes = [self.count_tokens(part) for part in part_texts(found)]
        for n in range(len(found), 0, -1):
            rng = random.Random(f"{self.seed}/{document.title}")
            asked = questions(found[:n], self.n_questions, rng, self.count_tokens, self.max_tokens)
            longest = max((self.count_tokens(question_text(one.question)) for one in asked), default=0)
            if fixed + sum(sizes[:n]) + longest <= most:
                return found[:n]
        raise DataError(
            f"max_context_tokens={most} is too few for one segment of {sizes[0]} tokens with a question; "
            "give more, or a smaller segment_tokens"
        )
