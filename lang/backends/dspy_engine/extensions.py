"""What this engine can do and DSPy's requests have no field for: `Config(extensions={"min_p": 0.1})`."""

from __future__ import annotations

from typing import Annotated, Any

from dspy import lm15  # type: ignore[import-untyped]
from pydantic import Field, ValidationError

from engine.server.fields import GrammarFields, TokenId
from engine.server.refused import CHAT
from lang.backends.dspy_engine.errors import invalid

Name = Annotated[str, Field(max_length=1024)]


class Extensions(GrammarFields):
    unserved = CHAT

    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    stop_token_ids: list[TokenId] | None = None
    ignore_eos: bool | None = None
    namespace: Name = Field("", description="Requests of different namespaces never share KV.")
    conversation: Name = Field("", description="For policies that know conversations.")
    program: Name = ""
    agent: Name = ""
    priority: int = Field(0, description="Higher goes first where the policy asks.")

    @property
    def tags(self) -> dict[str, Any]:
        """Those of `Engine.add`."""
        return self.model_dump(include={"namespace", "conversation", "program", "agent", "priority"})

    @property
    def sampling(self) -> dict[str, Any]:
        """Those of `SamplingParams`, where they are given."""
        names = {"min_p", "repetition_penalty", "min_tokens", "ignore_eos"}
        given: dict[str, Any] = self.model_dump(include=names, exclude_none=True)
        if self.stop_token_ids is not None:
            given["stop_token_ids"] = tuple(self.stop_token_ids)
        return given


def read_extensions(config: lm15.Config) -> Extensions:
    """Raises ApiError for a name that isn't known or not served, InvalidRequestError for a value that isn't allowed."""
    try:
        return Extensions.model_validate(dict(config.extensions or {}))
    except ValidationError as error:
        problem = error.errors()[0]
        path = "config.extensions." + ".".join(str(step) for step in problem["loc"])
        raise invalid(f"{path}={problem['input']!r:.80} is not allowed: {problem['msg']}") from None
