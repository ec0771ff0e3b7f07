"""Which JSON schemas xgrammar keeps to. It passes over what it doesn't know; here that is refused by name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from engine.constraints.base import GrammarError
from engine.constraints.fsm.regex_syntax import parse

_OF_SCHEMAS = {"properties", "patternProperties", "$defs", "definitions"}
_LISTS = {"anyOf", "allOf", "prefixItems"}
_ONE = {"items", "additionalProperties", "propertyNames", "unevaluatedItems", "unevaluatedProperties"}
_STRINGS = {"pattern", "format", "minLength", "maxLength"}
_NUMBERS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
_NEED_A_TYPE = _STRINGS | _NUMBERS
_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "boolean": bool,
    "null": type(None),
    "array": list,
    "object": dict,
    "integer": (int, float),
    "number": (int, float),
}
_NOT_SERVED = {
    *("not", "if", "then", "else", "oneOf", "dependencies", "dependentRequired", "dependentSchemas", "extends"),
    *("multipleOf", "divisibleBy", "uniqueItems", "contains", "minContains", "maxContains", "additionalItems"),
    *("disallow", "$dynamicRef", "$recursiveRef"),
}
"""Words that are no keywords of JSON Schema at all say nothing there either."""
_SERVED = {
    *_OF_SCHEMAS,
    *_LISTS,
    *_ONE,
    *_STRINGS,
    *("$ref", "const", "enum", "type", "required", "minProperties", "maxProperties", "minItems", "maxItems"),
    *_NUMBERS,
}
_ALONE = ("$ref", "const", "enum", "anyOf", "allOf")
"""Whatever stands beside one of these is passed over."""
_FORMATS = ("duration", "email", "ipv4", "ipv6", "time", "uuid")
"""xgrammar's dates have a 31st of February."""


def check_schema(schema: Any) -> None:
    """Raises GrammarError for what xgrammar would accept and not keep to, and for what is no schema."""
    try:
        _check(schema)
    except (TypeError, AttributeError) as error:
        raise GrammarError(f"this is no JSON schema, a keyword has a value of another kind: {error}") from None


def _check(schema: Any) -> None:
    if not isinstance(schema, Mapping):
        return
    for keyword in schema:
        if keyword in _NOT_SERVED:
            raise _refusal(f"the keyword {keyword!r}")
    says = schema.keys() & _SERVED - {"$defs", "definitions"}
    for keyword in _ALONE:
        beside = says - {keyword} - ({"type"} if keyword in ("const", "enum") else set())
        if keyword in says and beside:
            raise _refusal(f"{keyword!r} beside {', '.join(sorted(beside))}")
    if len(schema.get("allOf", ())) > 1:
        raise _refusal("'allOf' of several schemas")
    if "type" not in says and (bare := sorted(says & _NEED_A_TYPE)):
        raise _refusal(f"{bare[0]!r} without a 'type'")
    values = [schema["const"]] if "const" in says else schema.get("enum", ())
    if "type" in says and not all(_is_of(value, schema["type"]) for value in values):
        raise _refusal("a 'const' or 'enum' that isn't of its 'type'")
    strings = says & _STRINGS
    if len(strings) > 1 and strings != {"minLength", "maxLength"}:
        raise _refusal(" together with ".join(sorted(strings)))
    if undeclared := sorted(set(schema.get("required", ())) - schema.get("properties", {}).keys()):
        raise _refusal(f"'required' of {', '.join(undeclared):.60}, which 'properties' doesn't declare,")
    if not re.match(r"#(/|$)", schema.get("$ref", "#")):
        raise _refusal(f"the $ref {schema['$ref']!r:.60}, which is no path from the root (#/...),")
    if "patternProperties" in says and (schema.get("properties") or schema.get("additionalProperties") is not False):
        raise _refusal("'patternProperties' beside 'properties', or without 'additionalProperties': false,")
    if schema.get("format", _FORMATS[0]) not in _FORMATS:
        raise _refusal(f"the format {schema['format']!r}")
    for pattern in [*schema.get("patternProperties", ()), *([schema["pattern"]] if "pattern" in schema else [])]:
        parse(pattern)
    for part in _parts(schema):
        _check(part)


def _is_of(value: Any, types: str | list[str]) -> bool:
    return any(
        isinstance(value, _TYPES.get(name, ())) and (name == "boolean" or not isinstance(value, bool))
        for name in ([types] if isinstance(types, str) else types)
    )


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
