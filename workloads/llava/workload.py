"""LLaVA-Bench as a workload: which questions, with what pictures, in what order."""

from __future__ import annotations

import random
from collections.abc import Sequence

from workloads.base import Job, Outputs, Workload
from workloads.llava.data import load_questions
from workloads.llava.pictures import load_pictures
from workloads.llava.program import ask_about_picture
from workloads.llava.sample import draw
from workloads.sources import joined, need_at_least, need_one_of


class LLaVA(Workload):
    """The first `n_questions` questions, each with its picture before it; a picture has several questions.

    `order`: by_picture, as the file has them, or shuffled. `image_dir`: a folder with LLaVA-Bench's pictures.
    """

    needs_images = True
    served_outputs: Sequence[Outputs] = ("recorded", "fixed", "free")

    def __init__(
        self,
        *,
        data_dir: str | None = None,
        image_dir: str | None = None,
        n_questions: int | None = 60,
        order: str = "by_picture",
        seed: int = 0,
        max_tokens: int = 768,
        outputs: str = "auto",
    ) -> None:
        """Raises ValueError for a value that isn't allowed."""
        need_at_least(n_questions=(n_questions, 1), max_tokens=(max_tokens, 1))
        need_one_of("order", order, ("by_picture", "shuffled"))
        self.data_dir = data_dir
        self.image_dir = image_dir
        self.n_questions = n_questions
        self.order = order
        self.seed = seed
        self.max_tokens = max_tokens
        self.asked_outputs = outputs
        self._jobs: list[Job] = []

    def load(self) -> None:
        source, questions = load_questions(self.data_dir)
        chosen = list(questions[: self.n_questions])
        names = list(dict.fromkeys(question.image for question in questions))  # a picture doesn't depend on how many
        pictures = load_pictures(names, self.image_dir, self.data_dir)
        self.data = joined(source, pictures.source)
        if self.order == "shuffled":
            random.Random(self.seed).shuffle(chosen)
        self._jobs = [
            self._job(f"llava/{question.id}", pictures.files[question.image], question.text, question.answer)
            for question in chosen
        ]

    def jobs(self) -> list[Job]:
        return list(self._jobs)

    def warmup(self) -> list[Job]:
        """Pictures of our own in their own namespace: they warm no prompt of `jobs`."""
        return [
            self._job(f"warmup/{i}", draw(f"warm-up {i}"), "Warm-up: what is this?", "A drawing.", namespace="warmup")
            for i in range(4)
        ]

    def _job(self, name: str, picture: bytes, question: str, answer: str, namespace: str = "") -> Job:
        args = {"picture": picture, "question": question, "max_tokens": self.max_tokens, "recorded": answer}
        return Job(program=ask_about_picture, args=args, name=name, namespace=namespace, outputs=self.outputs)
