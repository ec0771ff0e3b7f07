"""A program as data: what it writes, asks and reads, in order, and what depends on what."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import PrivateAttr, ValidationError

from lang.graph.expressions import Expression, Model
from lang.graph.functions import BUILTIN, path_of
from lang.graph.ops import CALLS, Apply, Operation, Region, every, region_of

if TYPE_CHECKING:
    from lang.graph.compiled import GraphProgram

FORMAT: Literal[1] = 1


Functions = Iterable[Callable[..., Any]] | Mapping[str, Callable[..., Any]]


class GraphError(ValueError):
    """The file holds no graph that can be run here."""


class Graph(Model):
    """One program, traced. Operations stand in the order in which the program does them."""

    format: Literal[1] = FORMAT
    program: str
    arguments: tuple[str, ...] = ()
    """What a run must give: those that the trace wasn't given."""
    defaults: Mapping[str, Expression] = {}
    """Of arguments that a run may leave out."""
    body: Region
    returns: Expression
    _functions: dict[str, Callable[..., Any]] = PrivateAttr(default_factory=dict)

    @property
    def ops(self) -> tuple[Operation, ...]:
        return self.body.ops

    @property
    def calls(self) -> tuple[Operation, ...]:
        """Its gens and selects, those in regions too."""
        return tuple(op for op in self.every() if isinstance(op, CALLS))

    @property
    def functions(self) -> Mapping[str, Callable[..., Any]]:
        """Those that its `apply` operations call, by name."""
        return self._functions

    @property
    def applied(self) -> frozenset[str]:
        """Names of the functions of its own that it applies."""
        return frozenset(op.function for op in self.every() if isinstance(op, Apply)) - BUILTIN.keys()

    def check_functions(self) -> None:
        """Raises GraphError when one that it applies isn't there."""
        if missing := sorted(self.applied - self._functions.keys()):
            raise GraphError(
                f"program {self.program!r} applies {', '.join(missing)}: give them with functions=[...]; names in a "
                "file aren't imported"
            )

    def every(self) -> Iterator[Operation]:
        return every(self.ops)

    def with_functions(self, functions: Mapping[str, Callable[..., Any]]) -> Graph:
        self._functions.update(functions)
        return self

    def changed(self, ops: Iterable[Operation]) -> Graph:
        """The same program with other operations."""
        return self.model_copy(update={"body": region_of(ops)}).with_functions(self._functions)

    # ---- as JSON

    def to_json(self) -> str:
        """Raises GraphError for constants that JSON has no form for."""
        from lang.graph.saving import check_savable

        check_savable(self)
        return self.model_dump_json(indent=1, exclude_defaults=False)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it whole or not at all. Raises GraphError, OSError."""
        path = Path(path)
        part = path.with_name(path.name + ".part")
        part.write_text(self.to_json(), encoding="utf-8")
        os.replace(part, path)

    @classmethod
    def from_json(cls, text: str, functions: Functions | None = ()) -> Graph:
        """functions: those of its own that the program applies to values. A file can't name code to be run.

        With None, it needs none, and is there to be looked at: `as_program` refuses it if it applies any.

        Raises GraphError when it is no graph, or a function isn't given.
        """
        from lang.graph.loading import check_loaded

        try:
            graph = cls.model_validate_json(text, strict=True)
        except ValidationError as error:
            raise GraphError(f"no graph of version {FORMAT}: {_first_problem(error)}") from None
        if "format" not in graph.model_fields_set:
            raise GraphError(f"no graph of version {FORMAT}: format: Field required")
        check_loaded(graph)
        if functions is None:
            return graph
        given = functions if isinstance(functions, Mapping) else {path_of(function): function for function in functions}
        graph.with_functions({name: given[name] for name in graph.applied & given.keys()})
        graph.check_functions()
        return graph

    @classmethod
    def load(cls, path: str | os.PathLike[str], functions: Functions | None = ()) -> Graph:
        """As `from_json`. Raises OSError too."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise GraphError(f"{path}: no graph: it isn't UTF-8 ({error})") from None
        try:
            return cls.from_json(text, functions)
        except GraphError as error:
            raise GraphError(f"{path}: {error}") from None

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """Of what `save` writes."""
        from lang.graph.saving import schema_of

        return schema_of(cls)

    def as_program(self) -> GraphProgram:
        """A program that runs it: takes its open arguments, and is run and batched as any other.

        Raises GraphError when a function that it applies isn't there.
        """
        from lang.graph.compiled import GraphProgram

        return GraphProgram(self)

    def _check(self) -> None:
        """Raises GraphError for operations that name what isn't there."""
        from lang.graph.order import check_order

        check_order(self)

    def __str__(self) -> str:
        return importlib.import_module("lang.graph.show").listing(self)

    def mermaid(self) -> str:
        """A flowchart in Mermaid's language."""
        return importlib.import_module("lang.graph.mermaid").mermaid(self)

    def html(self) -> str:
        """A page that draws it; needs nothing from elsewhere."""
        return importlib.import_module("lang.graph.page").page(self)


def _first_problem(error: ValidationError) -> str:
    """Where it is, and what."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"])) or "the file"
    return f"{where}: {first['msg']}"
