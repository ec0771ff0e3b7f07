"""The DSPy program, how it is compiled, and the messages that it sends. Importing this imports dspy."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import dspy  # type: ignore[import-untyped]
from dspy.utils import DummyLM  # type: ignore[import-untyped]

from workloads.dspy_rag.data import Question
from workloads.retrieval import Retriever

Retrieve = Callable[[str], list[str]]
"""Passages that fit a question."""


class Message(NamedTuple):
    role: str
    """system, user or assistant."""
    content: str


class AnswerFromPassages(dspy.Signature):
    """Answer the question in a few words, from what the passages say."""

    context: list[str] = dspy.InputField(desc="passages that may help")
    question: str = dspy.InputField()
    answer: str = dspy.OutputField(desc="a name, a number, yes or no, rarely more than five words")


class RAG(dspy.Module):
    """Retrieves k passages, thinks, answers."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.retrieve = dspy.Retrieve(k=k)
        self.answer = dspy.ChainOfThought(AnswerFromPassages)

    def forward(self, question: str) -> dspy.Prediction:
        context = self.retrieve(question).passages
        said = self.answer(context=context, question=question)
        return dspy.Prediction(context=context, answer=said.answer)


def chat_adapter() -> dspy.ChatAdapter:
    """One call a question: an answer of another form is wrong, and isn't asked for again as JSON."""
    return dspy.ChatAdapter(use_json_adapter_fallback=False)


def retrieval_model(retriever: Retriever, passages: Sequence[str]) -> Callable[..., list[SimpleNamespace]]:
    """What `dspy.configure(rm=...)` takes."""

    def search(query: str, k: int) -> list[SimpleNamespace]:
        return [SimpleNamespace(long_text=passages[i]) for i in retriever.search(query, k)]

    return search


def example(question: Question) -> dspy.Example:
    return dspy.Example(question=question.question, answer=question.answer).with_inputs("question")


def exact_match(asked: dspy.Example, said: dspy.Prediction, trace: Any = None) -> bool:
    """HotpotQA's: without articles and punctuation, in lower case."""
    return bool(dspy.evaluate.answer_exact_match(asked, said))


def exact_and_found(asked: dspy.Example, said: dspy.Prediction, trace: Any = None) -> bool:
    """For demonstrations: and the answer stands in a passage."""
    return exact_match(asked, said) and bool(dspy.evaluate.answer_passage_match(asked, said))


def reasoning(question: Question) -> str:
    """The facts, as one who has found them would tell them."""
    return f"{' '.join(question.facts)} So the answer is {question.answer}.".strip()


class Compiled:
    """The program with its demonstrations."""

    def __init__(self, program: RAG, search: Callable[..., list[SimpleNamespace]], k: int) -> None:
        self.program = program
        self.search = search
        self.k = k
        self.adapter = chat_adapter()

    @property
    def _predictor(self) -> Any:
        return self.program.answer.predict

    @property
    def n_demos(self) -> int:
        return len(self._predictor.demos)

    def retrieve(self, question: str) -> list[str]:
        return [found.long_text for found in self.search(question, k=self.k)]

    def messages(self, question: str, passages: Sequence[str]) -> list[Message]:
        """What DSPy's ChatAdapter sends."""
        inputs = {"context": list(passages), "question": question}
        made = self.adapter.format(self._predictor.signature, self._predictor.demos, inputs)
        return [Message(message["role"], message["content"]) for message in made]

    def completion(self, question: Question) -> str:
        """The right answer in the form that the adapter asks for."""
        outputs = {"reasoning": reasoning(question), "answer": question.answer}
        return str(self.adapter.format_assistant_message_content(self._predictor.signature, outputs)).rstrip()

    def right(self, completion: str, question: Question) -> bool:
        """Whether DSPy reads the right answer in it."""
        try:
            said = self.adapter.parse(self._predictor.signature, completion)
        except dspy.AdapterParseError:
            return False
        return exact_match(example(question), dspy.Prediction(answer=said["answer"]))

    def drop_a_demo(self) -> None:
        """The last one that is a question with its answer alone; without such, the last."""
        demos = list(self._predictor.demos)
        plain = [i for i, demo in enumerate(demos) if "context" not in demo]
        del demos[plain[-1] if plain else -1]
        self._predictor.demos = demos


def compiled(
    retriever: Retriever, passages: Sequence[str], train: Sequence[Question], k: int, n_full: int, n_demos: int
) -> Compiled:
    """BootstrapFewShot on `train`, with a teacher that knows the answers: demonstrations with passages and reasoning
    are those whose answer was found, at most `n_full`; the others, up to `n_demos` in all, are question and answer."""
    search = retrieval_model(retriever, passages)
    adapter = chat_adapter()
    known = {one.question: {"reasoning": reasoning(one), "answer": one.answer} for one in train}
    bootstrap = dspy.BootstrapFewShot(
        metric=exact_and_found, max_bootstrapped_demos=n_full, max_labeled_demos=n_demos, max_rounds=1
    )
    with (
        dspy.context(lm=DummyLM(known, adapter=adapter), rm=search, adapter=adapter),
        contextlib.redirect_stdout(io.StringIO()),  # it tells its progress there
        contextlib.redirect_stderr(io.StringIO()),
    ):
        program = bootstrap.compile(RAG(k), trainset=[example(one) for one in train])
    return Compiled(program, search, k)
