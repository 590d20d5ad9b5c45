"""JSON schemas as grammars: what is refused, and that nothing which is not kept goes unsaid."""

from typing import Any

import pytest

from june.errors import GenerationError
from june.llm.llama_cpp.grammar import json_grammar, reply_grammar
from june.messages import Tool

DEEP: dict[str, Any] = {"type": "string"}
for _ in range(70):
    DEEP = {"type": "array", "items": DEEP}


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"type": "string", "pattern": "^a+$"}, "at # has pattern"),
        ({"properties": {"age": {"type": "integer", "maximum": 9}}}, "at #/properties/age has maximum"),
        ({"type": "integer", "minimum": 18}, "minimum that is neither 0 nor 1"),
        ({"type": "number", "minimum": 0}, "has minimum"),
        ({"type": "array", "uniqueItems": True}, "has uniqueItems"),
        ({"type": "object", "patternProperties": {}}, "has patternProperties"),
        ({"not": {"type": "null"}}, "has not"),
        ({"type": "string", "format": "email"}, "has the format 'email'"),
        ({"type": "string", "maxLength": 100_000}, "more than 2000"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "maxLength below its minLength"),
        ({"type": "text"}, "has the type 'text'"),
        ({"anyOf": [{"type": "string"}], "maxLength": 3}, "has maxLength"),
        ({"enum": ["a", "b"], "maxLength": 1}, "has maxLength"),
        ({"enum": ["a", 1], "type": "string"}, "values that cannot be"),
        ({"enum": []}, "values that cannot be"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"oneOf": [{"const": 1}, {"const": 2}]}, "oneOf"),
        ({"allOf": [{"type": "object"}, {"required": ["a"]}]}, "allOf"),
        ({"anyOf": {}}, "without a list of schemas"),
        ({"properties": {"a": False}}, "at #/properties/a is not a schema"),
        ({"type": "object", "required": ["a"]}, "requires 'a'"),
        ({"$ref": "https://example.org/schema.json"}, "another document"),
        ({"$ref": "#/$defs/missing"}, "is not there"),
        (DEEP, "64 schemas deep"),
    ],
)
def test_what_a_grammar_cannot_keep_is_refused_and_named(schema: dict[str, Any], told: str) -> None:
    with pytest.raises(GenerationError) as caught:
        json_grammar(schema)
    assert caught.value.code == "bad_grammar"
    assert told in str(caught.value)
    assert str(caught.value).endswith(".")
    with pytest.raises(GenerationError):
        reply_grammar([Tool("tool", "Does.", {"type": "object", "properties": {"it": schema}})])


def test_what_says_nothing_of_a_value_is_no_reason_to_refuse() -> None:
    plain = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    said = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Thing",
        "description": "A thing.",
        "$defs": {"unused": {"pattern": "a"}},
        **plain,
        "properties": {"a": {"type": "string", "title": "A", "default": "x", "examples": ["y"]}},
    }
    assert json_grammar(said) == json_grammar(plain)


def test_many_optional_properties_make_a_grammar_of_the_same_order() -> None:
    def size(count: int) -> int:
        return len(json_grammar({"properties": {f"p{number:03}": {} for number in range(count)}}))

    assert size(200) - size(100) < 1.2 * (size(100) - size(0))
