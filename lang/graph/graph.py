"""A program as data: what it writes, asks and reads, in order, and what depends on what."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import PrivateAttr, ValidationError

from lang.graph.expressions import Expression, InMemory, Model, walk
from lang.graph.functions import BUILTIN, path_of
from lang.graph.ops import CALLS, Apply, Loop, Operation, Region, every, region_of

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
        for op in self.every():
            expressions = [*op.expressions, *([op.until] if isinstance(op, Loop) else [])]
            for part in (part for expression in expressions for part in walk(expression)):
                if isinstance(part, InMemory):
                    raise GraphError(
                        f"program {self.program!r} can't be saved: {part.value!r:.60} at {op.line} isn't JSON; "
                        "leave the argument that it comes from to the run, or pass text, numbers, lists and dicts"
                    )
        return self.model_dump_json(indent=1, exclude_defaults=False)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it whole or not at all. Raises GraphError, OSError."""
        path = Path(path)
        part = path.with_name(path.name + ".part")
        part.write_text(self.to_json(), encoding="utf-8")
        os.replace(part, path)

    @classmethod
    def from_json(
        cls, text: str, functions: Iterable[Callable[..., Any]] | Mapping[str, Callable[..., Any]] = ()
    ) -> Graph:
        """functions: those of its own that the program applies to values. A file can't name code to be run.

        Raises GraphError when it is no graph, or a function isn't given.
        """
        try:
            graph = cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise GraphError(f"no graph of version {FORMAT}: {where}: {first['msg']}") from None
        given = functions if isinstance(functions, Mapping) else {path_of(function): function for function in functions}
        graph._check()
        needed = {op.function for op in graph.every() if isinstance(op, Apply)} - BUILTIN.keys()
        if missing := sorted(needed - given.keys()):
            raise GraphError(
                f"program {graph.program!r} applies {', '.join(missing)}: give them with functions=[...]; names in a "
                "file aren't imported"
            )
        return graph.with_functions({name: given[name] for name in needed})

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        functions: Iterable[Callable[..., Any]] | Mapping[str, Callable[..., Any]] = (),
    ) -> Graph:
        """As `from_json`. Raises OSError too."""
        return cls.from_json(Path(path).read_text(encoding="utf-8"), functions)

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """Of what `save` writes."""
        schema = cls.model_json_schema(mode="serialization")
        return json.loads(json.dumps(schema))

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
