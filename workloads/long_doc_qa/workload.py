"""Questions about long documents as a workload."""

from __future__ import annotations

from collections.abc import Sequence

from lang.runner import ProgramRun
from workloads.base import Job, Outputs, Score, Workload
from workloads.data import DataError
from workloads.long_doc_qa.data import Document, Question, load_documents, questions, segments
from workloads.long_doc_qa.program import long_doc_qa
from workloads.sources import need_at_least, need_one_of

ENCODINGS = ("concatenated", "plain")


class LongDocQA(Workload):
    """`n_segments` segments of about `segment_tokens` tokens a document, `n_questions` questions on top of them.

    Recorded answers are how the sentences go on.
    """

    served_outputs: Sequence[Outputs] = ("recorded", "fixed", "free")

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        n_documents: int | None = 3,
        n_segments: int = 10,
        segment_tokens: int = 1100,
        n_questions: int = 10,
        max_tokens: int = 16,
        encoding: str = "concatenated",
        outputs: str = "auto",
    ) -> None:
        """Raises ValueError for a value that isn't allowed."""
        need_one_of("encoding", encoding, ENCODINGS)
        need_at_least(n_documents=(n_documents, 1), n_segments=(n_segments, 1), segment_tokens=(segment_tokens, 8))
        need_at_least(n_questions=(n_questions, 1), max_tokens=(max_tokens, 1))
        self.data_dir = data_dir
        self.n_documents = n_documents
        self.n_segments = n_segments
        self.segment_tokens = segment_tokens
        self.n_questions = n_questions
        self.max_tokens = max_tokens
        self.encoding = encoding
        self.asked_outputs = outputs
        self._jobs: list[Job] = []
        self._asked: dict[str, list[Question]] = {}

    def load(self) -> None:
        self.data, documents = load_documents(self.data_dir)
        self._asked = {}
        self._jobs = [
            self._job(f"long_doc_qa/{i}", document) for i, document in enumerate(documents[: self.n_documents])
        ]

    def jobs(self) -> list[Job]:
        return list(self._jobs)

    def warmup(self) -> list[Job]:
        """A short document of our own, in a namespace of its own."""
        text = "Warm-ups are short and say little. " * 12
        return [self._job("warmup/0", Document("warm-up", text), "warmup")]

    def score(self, finished: Sequence[ProgramRun]) -> Score | None:
        """Share of the questions whose answer begins as the sentence goes on, three words; failed ones are wrong."""
        asked = [(run, question, i) for run in finished for i, question in enumerate(self._asked[run.name])]
        if not asked:
            return None
        right = sum(
            run.status == "done" and run.state.ret_value[i].split()[:3] == question.answer.split()[:3]
            for run, question, i in asked
        )
        return Score("answers that begin right", right / len(asked), len(asked))

    def _job(self, name: str, document: Document, namespace: str = "") -> Job:
        parts = segments(document.text, self.n_segments, self.segment_tokens, self.count_tokens)
        asked = questions(parts, self.n_questions)
        if not asked:
            raise DataError(f"document {document.title!r} has no sentence to ask about; give more segment_tokens")
        self._asked[name] = asked
        args = {
            "parts": parts,
            "asked": asked,
            "max_tokens": self.max_tokens,
            "concatenated": self.encoding == "concatenated",
        }
        return Job(program=long_doc_qa, args=args, name=name, namespace=namespace, outputs=self.outputs)
