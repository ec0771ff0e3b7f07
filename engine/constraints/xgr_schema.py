"""Which JSON schemas xgrammar keeps to. It passes over what it doesn't know; here that is refused by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from engine.constraints.base import GrammarError
from engine.constraints.fsm.regex_syntax import parse

_SAYS_NOTHING = {
    *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
    *("$comment", "$schema", "$id", "$defs", "definitions"),
}
_OF_SCHEMAS = {"properties", "patternProperties", "$defs", "definitions"}
_LISTS = {"anyOf", "allOf", "prefixItems"}
_ONE = {"items", "additionalProperties", "propertyNames", "unevaluatedItems", "unevaluatedProperties"}
_STRINGS = {"pattern", "format", "minLength", "maxLength"}
_PLAIN = {
    *("$ref", "const", "enum", "type", "required", "minProperties", "maxProperties", "minItems", "maxItems"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
}
_SERVED = _SAYS_NOTHING | _OF_SCHEMAS | _LISTS | _ONE | _STRINGS | _PLAIN
_ALONE = ("$ref", "const", "enum", "anyOf", "allOf")
"""Whatever stands beside one of these is passed over."""
_FORMATS = ("date", "date-time", "duration", "email", "ipv4", "ipv6", "time", "uuid")


def check_schema(schema: Any) -> None:
    """Raises GrammarError for what xgrammar would accept and not keep to."""
    if not isinstance(schema, Mapping):
        return
    for keyword in schema:
        if keyword not in _SERVED:
            raise _refusal(f"the keyword {keyword!r}")
    says = schema.keys() - _SAYS_NOTHING
    for keyword in _ALONE:
        beside = says - {keyword} - ({"type"} if keyword in ("const", "enum") else set())
        if keyword in says and beside:
            raise _refusal(f"{keyword!r} beside {', '.join(sorted(beside))}")
    if len(schema.get("allOf", ())) > 1:
        raise _refusal("'allOf' of several schemas")
    strings = says & _STRINGS
    if len(strings) > 1 and strings != {"minLength", "maxLength"}:
        raise _refusal(" together with ".join(sorted(strings)))
    if schema.get("format", "date") not in _FORMATS:
        raise _refusal(f"the format {schema['format']!r}")
    for pattern in [*schema.get("patternProperties", ()), *([schema["pattern"]] if "pattern" in schema else [])]:
        parse(pattern)
    for part in _parts(schema):
        check_schema(part)


def _parts(schema: Mapping[str, Any]) -> Iterator[Any]:
    for keyword, value in schema.items():
        if keyword in _OF_SCHEMAS:
            yield from value.values()
        elif keyword in _LISTS or (keyword == "items" and isinstance(value, list)):
            yield from value
        elif keyword in _ONE:
            yield value


def _refusal(what: str) -> GrammarError:
    return GrammarError(
        f"grammar_backend=xgrammar doesn't serve {what} in a JSON schema: change the schema, or start the engine with "
        "grammar_backend=llguidance"
    )
