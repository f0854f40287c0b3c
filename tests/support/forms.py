"""Forms that answers are held to: random JSON schemas whose answers come to an end, and patterns."""

import random
from typing import Any

PATTERNS = [
    r"[a-z]{3}-[0-9]{4}",
    r"(yes|no|maybe)",
    r"\d{4}-\d{2}-\d{2}",
    r"[A-F0-9]{8}",
    r"(ab|cd){1,5}",
    r"a{0,12}b",
    r"[^a]{4}",
    r"\$\d{1,4}\.\d{2}",
    r"(\+49|0)[1-9]\d{2,8}",
    r"[\w.]{1,8}@[a-z]{1,8}\.(com|org)",
    r"(0|1){8}",
    r"#[0-9a-f]{6}",
    r"v\d{1,2}\.\d{1,2}(\.\d{1,2})?",
    r"(Mon|Tues|Wednes)day",
    r"[ab]{0,9}c{2}",
    r"x?y?z?!",
    r"(foo|foobar|foobarbaz)",
    r"\(\d{3}\) \d{3}",
    r"<b>[a-z]{1,9}</b>",
    r"-?\d{1,3}(\.\d{1,3})?",
    r"[äöü]{2,4}",
    r"日本(語|人)?",
    r"[a-c][d-f][g-i]",
    r"(a|b|c){3,6}",
    r"\s[a-z]\s",
    r"(?i)hello",
    r".{5}",
    r"(one|two) (three|four)",
    r"[0-5]\d:[0-5]\d",
    r"A{1,9}B{2}",
    r"key=[a-z]{1,5};",
    r"\[\d(,\d){0,5}\]",
    r"'[^']{0,9}'",
    r"/(api|v1)/[a-z]{1,6}",
    r"((a)|(b))((c)|(d))",
    r"[[:alpha:]]{1,6}",
    r"\p{L}{1,4}",
    r"0x[0-9A-F]{2,4}",
    r"(\d{1,3}\.){3}\d{1,3}",
    r"[!-/]{3}",
    r"q(u(e(u(e)?)?)?)?",
    r"\w{2,7}\d",
    r"(red|green|blue)( (red|green|blue)){0,2}",
    r"\\n",
    r"[\]\[]{2}",
    r"(.)(.)",
    r"🙂{1,3}",
    r"end\.",
    r"a|b|cd",
    r"([a-z]{1,3} ){1,3}end",
]


def schemas(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """As many, the same for the same seed. No answer to one is endless, blanks aside."""
    draw = random.Random(seed)
    return [_object(draw, 2) for _ in range(count)]


def _object(draw: random.Random, depth: int) -> dict[str, Any]:
    names = draw.sample(["name", "age", "ok", "tags", "a b", "ü", 'x"y', "kind"], k=draw.randint(1, 4))
    properties = {name: _value(draw, depth - 1) for name in names}
    required = [name for name in names if draw.random() < 0.7]
    return {
        "type": "object", "properties": properties, "required": required, "additionalProperties": False,
    }  # fmt: skip


def _value(draw: random.Random, depth: int) -> dict[str, Any]:
    low = draw.randint(-50, 50)
    simple: list[dict[str, Any]] = [
        {"type": "string", "maxLength": draw.randint(0, 6)},
        {"type": "string", "minLength": 2, "maxLength": 4},
        {"type": "string", "pattern": draw.choice([r"^[a-z]{1,4}$", r"^\d{2}-\d{2}$", r"^(x|yy){1,3}$"])},
        {"type": "string", "format": "date"},
        {"enum": draw.sample(["red", "green", 3, None, True, "ß"], k=3)},
        {"const": draw.choice(["fixed", 17, False])},
        {"type": "integer", "minimum": low, "maximum": low + draw.randint(0, 2000)},
        {"type": "boolean"},
        {"type": ["null", "boolean"]},
        {"anyOf": [{"type": "null"}, {"type": "integer", "minimum": 0, "maximum": 9}]},
    ]
    if depth > 0 and draw.random() < 0.4:
        return draw.choice(
            [
                _object(draw, depth),
                {"type": "array", "items": _value(draw, 0), "minItems": 1, "maxItems": 3},
                {"type": "array", "prefixItems": [_value(draw, 0)], "items": False, "minItems": 1},
                {"$defs": {"one": _value(draw, 0)}, "anyOf": [_value(draw, 0), {"type": "null"}]},
            ]
        )
    return draw.choice(simple)
