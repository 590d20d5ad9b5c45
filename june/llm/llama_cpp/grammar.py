"""JSON schemas as GBNF, the grammars that llama.cpp samples by.

The converter that llama-cpp-python ships lets raw line breaks into strings (so that the answer is not JSON),
breaks at quotes in an `enum`, mixes up references that end in the same word, and drops every keyword that it
does not know. Here a keyword is kept or refused. An object's properties come in the schema's order, and
others than those that it names never come, whatever `additionalProperties` allows.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from typing import Any, Final

from june.errors import GenerationError
from june.llm.prompt import Prompt
from june.messages import JsonObject, Tool

DEEPEST_SCHEMA = 64
LONGEST_REPETITION = 2000
"""llama.cpp's `MAX_REPETITION_THRESHOLD`."""

DEEPEST_PARENTHESES = 1_000
MOST_RULES = 10_000
"""llama.cpp reads a grammar by recursion; with 20,000 parentheses in one another, or a chain of 100,000
rules, it overran its stack."""

_RULES: Final = {
    "space": '" "?',
    "value": "object | array | string | number | boolean | null",
    "object": '"{" (string ":" space value ("," space string ":" space value)*)? "}"',
    "array": '"[" (value ("," space value)*)? "]"',
    "string": r'"\"" char* "\""',
    "char": r'[^"\\\x00-\x1F\x7F] | "\\" (["\\/bfnrt] | "u" unit)',
    "unit": "[0-9a-ce-fA-CE-F] hex hex hex | [dD] [0-7] hex hex",  # no half of a surrogate pair
    "hex": "[0-9a-fA-F]",
    "number": r'integer ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,2})?',
    "integer": '"-"? natural',
    "natural": '"0" | positive',
    "positive": "[1-9] [0-9]{0,15}",
    "boolean": '"true" | "false"',
    "null": '"null"',
    "date": '[0-9]{4} "-" ("0" [1-9] | "1" [0-2]) "-" ("0" [1-9] | [12] [0-9] | "3" [01])',
    "time": '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{1,6})? '
    '("Z" | [-+] ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9])',
    "date-time": 'date "T" time',
    "uuid": 'hex{8} "-" hex{4} "-" hex{4} "-" hex{4} "-" hex{12}',
}
_FORMATS = ("date", "time", "date-time", "uuid")
_ANNOTATIONS = frozenset(
    (
        *("$schema", "$comment", "$defs", "definitions", "title", "description", "default", "examples"),
        *("deprecated", "readOnly", "writeOnly", "discriminator"),
    )
)
"""Keywords that allow and forbid nothing."""
_KEYWORDS: Final[Mapping[str, frozenset[str]]] = {
    "object": frozenset(("properties", "required", "additionalProperties")),
    "array": frozenset(("items", "minItems", "maxItems")),
    "string": frozenset(("minLength", "maxLength", "format")),
    "integer": frozenset(("minimum", "exclusiveMinimum")),
    "number": frozenset(),
    "boolean": frozenset(),
    "null": frozenset(),
}
_OF_A_TYPE: Final[Mapping[str, Callable[[Any], bool]]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}


def prompt_grammar(prompt: Prompt) -> str:
    """Return a grammar of the answers that a prompt asks for; empty: any answer.

    Raises:
        GenerationError: as `json_grammar`.
    """
    if prompt.json_schema is not None:
        return json_grammar(prompt.json_schema)
    return reply_grammar(prompt.reply_tools) if prompt.reply_tools else ""


def json_grammar(schema: JsonObject) -> str:
    """Return a grammar of the JSON values that follow the schema.

    Raises:
        GenerationError: something in the schema cannot be kept (code "bad_grammar"), and what and where.
    """
    rules = dict(_RULES)
    root = _Converter(rules, "s", schema).convert()
    return _written(rules, root)


def reply_grammar(tools: Iterable[Tool]) -> str:
    """Return a grammar of `{"answer": "…"}` and, for each tool, `{"tool": "…", "arguments": {…}}`.

    Raises:
        GenerationError: as `json_grammar`, of a tool's parameters.
    """
    rules = dict(_RULES)
    replies = [r'"{\"answer\":" space "\"" char+ "\"}"']
    for number, tool in enumerate(tools):
        arguments = _Converter(rules, f"t{number}", tool.parameters).convert()
        name = _literal(tool.name)
        replies.append(rf'"{{\"tool\":" space {name} "," space "\"arguments\":" space {arguments} "}}"')
    return _written(rules, " | ".join(replies))


def refuse_bottomless(gbnf: str) -> None:
    """Return if llama.cpp can read a grammar of this size.

    Raises:
        GenerationError: it would end the process (code "bad_grammar").
    """
    depths = accumulate(1 if mark == "(" else -1 for mark in re.findall("[()]", gbnf))
    if max(depths, default=0) > DEEPEST_PARENTHESES or gbnf.count("::=") > MOST_RULES:
        raise GenerationError(
            "bad_grammar",
            f"The grammar has over {MOST_RULES} rules, or {DEEPEST_PARENTHESES} parentheses in one another.",
        )


def _written(rules: Mapping[str, str], root: str) -> str:
    return "".join(f"{name} ::= {body}\n" for name, body in {"root": root, **rules}.items())


def _literal(value: Any) -> str:
    """Return the JSON of a constant, as a string of GBNF."""
    text = json.dumps(value, ensure_ascii=False)
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


class _Converter:
    """One schema's rules, whose names begin with `prefix`."""

    def __init__(self, rules: dict[str, str], prefix: str, schema: JsonObject) -> None:
        self._rules = rules
        self._prefix = prefix
        self._schema = schema
        self._referred: dict[str, str] = {}
        self._depth = 0

    def convert(self) -> str:
        """Return the name of the rule for the whole schema."""
        return self._visit(self._schema, "#")

    def _visit(self, schema: Any, where: str) -> str:
        """Return the name of a rule for a schema that stands at `where`."""
        if schema is True:
            return "value"
        if not isinstance(schema, Mapping):
            raise _refused(where, "is not a schema that a value can follow")
        if self._depth == DEEPEST_SCHEMA:
            raise _refused(where, f"is more than {DEEPEST_SCHEMA} schemas deep")
        self._depth += 1
        rule = self._rule({key: schema[key] for key in schema if key not in _ANNOTATIONS}, where)
        self._depth -= 1
        return rule

    def _rule(self, schema: JsonObject, where: str) -> str:
        """Return the same for a schema without annotations: by its first keyword of these, or by its type."""
        by_keyword = {
            "$ref": self._refer,
            "anyOf": self._union,
            "oneOf": self._one_of,
            "allOf": self._all_of,
            "const": self._constants,
            "enum": self._constants,
        }
        for keyword, rule in by_keyword.items():
            if keyword in schema:
                _allow(schema, {keyword, "type"} if rule == self._constants else {keyword}, where)
                return rule(schema, keyword, where)
        kind = schema.get("type") or _implied_type(schema, where)
        if isinstance(kind, list):
            return self._any_type(schema, kind, where)
        if kind not in _KEYWORDS:
            raise _refused(where, f"has the type {kind!r}, which JSON does not know")
        _allow(schema, {"type", *_KEYWORDS[kind]}, where)
        by_type = {
            "object": self._object,
            "array": self._array,
            "string": self._string,
            "integer": self._integer,
        }
        return by_type[kind](schema, where) if kind in by_type else str(kind)

    def _add(self, body: str) -> str:
        name = f"{self._prefix}-{len(self._rules)}"
        self._rules[name] = body
        return name

    def _refer(self, schema: JsonObject, keyword: str, where: str) -> str:
        reference = schema[keyword]
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise _refused(where, "refers to another document")
        if reference not in self._referred:
            target: Any = self._schema
            for step in reference.split("/")[1:]:
                name = step.replace("~1", "/").replace("~0", "~")
                if not isinstance(target, Mapping) or name not in target:
                    raise _refused(where, f"refers to {reference}, which is not there")
                target = target[name]
            # The rule has its name first, for schemas that refer to themselves.
            self._referred[reference] = rule = self._add("")
            self._rules[rule] = self._visit(target, reference)
        return self._referred[reference]

    def _union(self, schema: JsonObject, keyword: str, where: str) -> str:
        alternatives = _schemas(schema, keyword, where)
        return self._add(
            " | ".join(self._visit(each, f"{where}/{keyword}/{n}") for n, each in enumerate(alternatives))
        )

    def _one_of(self, schema: JsonObject, keyword: str, where: str) -> str:
        kinds = [str(each.get("type", "")) for each in _schemas(schema, keyword, where)]
        names = {"number" if kind == "integer" else kind for kind in kinds}
        if len(names) < len(kinds) or not names <= _KEYWORDS.keys():
            raise _refused(where, "has oneOf for schemas that are not of different types; anyOf can be kept")
        return self._union(schema, keyword, where)

    def _all_of(self, schema: JsonObject, keyword: str, where: str) -> str:
        if len(_schemas(schema, keyword, where)) > 1:
            raise _refused(where, "has allOf for several schemas; only one can be kept")
        return self._union(schema, keyword, where)

    def _any_type(self, schema: JsonObject, kinds: list[Any], where: str) -> str:
        known = {word for kind in kinds for word in _KEYWORDS.get(str(kind), ())}
        _allow(schema, {"type", *known}, where)
        each_of = [
            {"type": kind, **{word: schema[word] for word in _KEYWORDS.get(str(kind), ()) if word in schema}}
            for kind in kinds
        ]
        return self._add(" | ".join(self._visit(each, where) for each in each_of))

    def _constants(self, schema: JsonObject, keyword: str, where: str) -> str:
        values = [schema["const"]] if keyword == "const" else schema["enum"]
        fits = _OF_A_TYPE.get(schema.get("type", ""), lambda _: "type" not in schema)
        if not isinstance(values, list) or not values or not all(map(fits, values)):
            raise _refused(where, f"has {keyword} for values that cannot be")
        return self._add(" | ".join(map(_literal, values)))

    def _string(self, schema: JsonObject, where: str) -> str:
        if "format" in schema:
            _allow(schema, {"type", "format"}, where)
            if schema["format"] not in _FORMATS:
                raise _refused(where, f"has the format {schema['format']!r}; known are {', '.join(_FORMATS)}")
            return self._add(rf'"\"" {schema["format"]} "\""')
        if not schema.keys() & {"minLength", "maxLength"}:
            return "string"
        return self._add(rf'"\"" char{_times(schema, "minLength", "maxLength", where)} "\""')

    def _integer(self, schema: JsonObject, where: str) -> str:
        least = (schema.get("minimum"), schema.get("exclusiveMinimum"))
        names = {(None, None): "integer", (0, None): "natural", (1, None): "positive", (None, 0): "positive"}
        if least not in names:
            raise _refused(where, "has a minimum that is neither 0 nor 1")
        return names[least]

    def _array(self, schema: JsonObject, where: str) -> str:
        item = self._visit(schema.get("items", True), f"{where}/items")
        _times(schema, "minItems", "maxItems", where)
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if most == 0:
            return self._add('"[]"')
        more = f"{{{max(least - 1, 0)},{'' if most is None else most - 1}}}"
        items = f'{item} ("," space {item}){more}'
        return self._add(f'"[" {items} "]"' if least else f'"[" ({items})? "]"')

    def _object(self, schema: JsonObject, where: str) -> str:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, Mapping) or not isinstance(required, list):
            raise _refused(where, "has no properties that can be read")
        if missing := [name for name in required if name not in properties]:
            raise _refused(where, f"requires {missing[0]!r}, which is none of its properties")
        if "properties" not in schema and schema.get("additionalProperties") is not False:
            others = schema.get("additionalProperties", True)
            other = self._visit(others, f"{where}/additionalProperties")
            pair = f'string ":" space {other}'
            return self._add(f'"{{" ({pair} ("," space {pair})*)? "}}"')
        pairs = []
        for name, each in properties.items():
            value = self._visit(each, f"{where}/properties/{name}")
            pairs.append((f'{_literal(name)} ":" space {value}', name in required))
        return self._add(f'"{{" {self._members(pairs)} "}}"')

    def _members(self, pairs: list[tuple[str, bool]]) -> str:
        """Return the name of a rule for pairs, each with whether it must come; built from the last one."""
        after_others = alone = '""'  # what may follow a pair, and what may follow the brace
        for pair, must_come in reversed(pairs):
            begins, goes_on = f"{pair} {after_others}", f'"," space {pair} {after_others}'
            if must_come:
                alone, after_others = self._add(begins), self._add(goes_on)
            else:
                alone = self._add(f"{begins} | {alone}")
                after_others = self._add(f"{goes_on} | {after_others}")
        return alone


def _schemas(schema: JsonObject, keyword: str, where: str) -> list[JsonObject]:
    schemas = schema[keyword]
    if not isinstance(schemas, list) or not schemas or not all(isinstance(each, Mapping) for each in schemas):
        raise _refused(where, f"has {keyword} without a list of schemas")
    return schemas


def _implied_type(schema: JsonObject, where: str) -> str:
    """Return the type of a schema that names none: the one that its keywords belong to."""
    for kind, words in _KEYWORDS.items():
        if words >= schema.keys():
            return kind
    raise _refused(where, f"has {', '.join(sorted(schema))}, which cannot be kept")


def _times(schema: JsonObject, least: str, most: str, where: str) -> str:
    """Return how often something comes, as GBNF's `{m,n}`."""
    low, high = schema.get(least, 0), schema.get(most)
    for number in (low, high):
        if number is not None and not (isinstance(number, int) and 0 <= number <= LONGEST_REPETITION):
            raise _refused(where, f"counts to more than {LONGEST_REPETITION}, or not in whole numbers")
    if high is not None and high < low:
        raise _refused(where, f"has a {most} below its {least}")
    return f"{{{low},{'' if high is None else high}}}"


def _allow(schema: JsonObject, words: Iterable[str], where: str) -> None:
    if unknown := sorted(schema.keys() - set(words)):
        raise _refused(where, f"has {', '.join(unknown)}, which cannot be kept")


def _refused(where: str, why: str) -> GenerationError:
    return GenerationError("bad_grammar", f"The JSON schema at {where} {why}.")
