"""Rules that hold twice: as CEL in the CRD, for everybody who applies a manifest, and as Python, for `slipway plan` without a cluster.

A rule carries its message: what is wrong and what to write instead. Nothing in `api/` talks to a cluster.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, core_schema

VALIDATIONS = "x-kubernetes-validations"


@dataclass(frozen=True)
class Rule:
    """One rule about a value or an object; goes into `Annotated[...]` or into `rules` of a model."""

    cel: str
    message: str
    check: Callable[[Any], bool]

    def verify(self, value: Any) -> Any:
        """The value itself, if it obeys the rule.

        Raises:
            ValueError: With the message of the rule.
        """
        if not self.check(value):
            raise ValueError(self.message)
        return value

    def as_schema(self) -> dict[str, str]:
        """The entry of x-kubernetes-validations."""
        return {"rule": self.cel, "message": self.message}

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.verify, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        result = dict(handler(schema))
        result[VALIDATIONS] = [*result.get(VALIDATIONS, []), self.as_schema()]
        return result


def matches(pattern: str, message: str) -> Rule:
    """The whole string matches; the pattern must mean the same in RE2 and in Python, hold no single quote and no `|` outside a group."""
    compiled = re.compile(pattern)
    return Rule(f"self.matches(r'^{pattern}$')", message, lambda value: compiled.fullmatch(value) is not None)


class ApiModel(BaseModel):
    """A part of a resource: immutable, camelCase outside and snake_case inside, no unknown field, and its rules."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True, extra="forbid")
    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _obey_rules(self) -> Self:
        for rule in self.rules:
            rule.verify(self)
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        reference = handler(schema)
        if cls.rules:
            handler.resolve_ref_schema(reference)[VALIDATIONS] = [rule.as_schema() for rule in cls.rules]
        return reference


class StatusModel(ApiModel):
    """A part of a status: unknown fields are ignored, because an older operator may read what a newer one wrote."""

    model_config = ConfigDict(extra="ignore")
