"""Writes `crds/` and `docs/reference/` from the pydantic models, or checks that they are what the models say.

The models are the only source: nothing generated is edited by hand. A CRD wants a structural schema, which is JSON schema without
references and without alternatives, so this file inlines the one and folds the other.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from slipway.api.models import ModelArtifact, ModelDeployment, ServingRuntime
from slipway.api.rules import ApiModel
from slipway.refdoc import api_page, reasons_page

Schema = dict[str, Any]

GROUP = "slipway.dev"
VERSION = "v1alpha1"
ROOT = Path(__file__).parents[3]
# What a structural schema may hold and we use, in the order a human reads it.
KEYWORDS = (
    "description", "type", "format", "enum", "default", "minimum", "maximum", "minLength", "maxLength", "pattern", "minItems", "maxItems",
    "maxProperties", "nullable", "x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields", "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys", "required", "properties", "additionalProperties", "items", "x-kubernetes-validations",
)  # fmt: skip
ONE_LINE = 2500  # characters of a part that is written in one line
CHOSEN = ".status.candidates[?(@.chosen==true)]"
READY = '.status.conditions[?(@.type=="Ready")]'


@dataclass(frozen=True, slots=True)
class Kind:
    """What a CRD says beside its schema. A column is (name, JSON path, type, priority)."""

    model: type[ApiModel]
    plural: str
    short: str
    columns: tuple[tuple[str, str, str, int], ...]
    scope: str = "Namespaced"
    categories: tuple[str, ...] = ()
    subresources: Mapping[str, Any] = field(default_factory=dict)
    has_spec_defaults: bool = True

    @property
    def name(self) -> str:
        """The kind in CamelCase."""
        return self.model.__name__

    @property
    def crd_name(self) -> str:
        """The name of the CRD."""
        return f"{self.plural}.{GROUP}"


KINDS = (
    Kind(
        model=ModelDeployment,
        plural="modeldeployments",
        short="mdep",
        categories=("inference",),
        columns=(
            ("Ready", f"{READY}.status", "string", 0),
            ("Stable", ".status.stable.revision", "string", 0),
            ("Canary", ".status.canary.revision", "string", 0),
            ("Weight", ".status.canary.weight", "integer", 0),
            ("Format", ".status.stable.format", "string", 0),
            ("Reason", f"{READY}.reason", "string", 1),
            ("URL", ".status.url", "string", 1),
            ("Age", ".metadata.creationTimestamp", "date", 0),
        ),
        subresources={
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.serving.replicas",
                "statusReplicasPath": ".status.replicas",
                "labelSelectorPath": ".status.selector",
            },
        },
    ),
    Kind(
        model=ModelArtifact,
        plural="modelartifacts",
        short="mart",
        categories=("inference",),
        columns=(
            ("Ready", f"{READY}.status", "string", 0),
            ("Reason", f"{READY}.reason", "string", 0),
            ("Format", ".status.format", "string", 0),
            ("Precision", ".status.precision", "string", 1),
            ("P50", f"{CHOSEN}.latencyP50", "string", 1),
            ("Error", f"{CHOSEN}.maxAbsoluteError", "string", 1),
            ("Size", ".status.sizeBytes", "integer", 0),
            ("Source", ".spec.model.uri", "string", 1),
            ("Digest", ".status.digest", "string", 1),
            ("Age", ".metadata.creationTimestamp", "date", 0),
        ),
        subresources={"status": {}},
        # The name is the hash of the spec as it was written: the API server must not add to it, and a later default must not change it.
        has_spec_defaults=False,
    ),
    Kind(
        model=ServingRuntime,
        plural="servingruntimes",
        short="srt",
        scope="Cluster",
        columns=(
            ("Image", ".spec.image", "string", 0),
            ("Port", ".spec.port", "integer", 0),
            # Of `.spec.formats[*].name` the API server prints only the first: no list fits a column, so the whole of it is for -o wide.
            ("Formats", ".spec.formats", "string", 1),
            ("Age", ".metadata.creationTimestamp", "date", 0),
        ),
    ),
)


def inlined(schema: Schema, definitions: Mapping[str, Schema]) -> Schema:
    """The schema with references replaced by what they refer to, and `X or null` by X; what stands beside a reference wins."""
    result = {key: value for key, value in schema.items() if key not in ("$ref", "anyOf", "allOf")}
    targets = [definitions[schema["$ref"].rsplit("/", 1)[1]]] if "$ref" in schema else []
    targets += [option for option in (*schema.get("anyOf", []), *schema.get("allOf", [])) if option.get("type") != "null"]
    if len(targets) > 1:
        raise ValueError(f"a structural schema has no alternatives: {schema}")
    for target in targets:
        result = inlined(target, definitions) | result
    return result


def structural(schema: Schema, definitions: Mapping[str, Schema]) -> Schema:
    """The structural schema of a pydantic schema."""
    flat = inlined(schema, definitions)
    if "const" in flat:
        flat["enum"] = [flat.pop("const")]
    if flat.get("default") is None:
        flat.pop("default", None)
    elif flat.get("type") == "object":
        flat["default"] = {}  # the fields have defaults of their own
    _fold_additional(flat, definitions)
    if "properties" in flat:
        flat["properties"] = {name: structural(part, definitions) for name, part in flat["properties"].items()}
    if "items" in flat:
        flat["items"] = structural(flat["items"], definitions)
    return {key: flat[key] for key in KEYWORDS if key in flat}


def _fold_additional(flat: Schema, definitions: Mapping[str, Schema]) -> None:
    additional = flat.pop("additionalProperties", None)
    if additional is True:
        flat["x-kubernetes-preserve-unknown-fields"] = True
    elif isinstance(additional, dict):
        flat["additionalProperties"] = structural(additional, definitions)


def without_defaults(schema: Any) -> Any:
    """The schema with every default taken out; a property of the name `default` stays."""
    if isinstance(schema, list):
        return [without_defaults(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: {name: without_defaults(part) for name, part in value.items()} if key == "properties" else without_defaults(value)
        for key, value in schema.items()
        if key != "default"
    }


def root_schema(kind: Kind) -> Schema:
    """The schema of the whole resource; `metadata` and its like are the API server's own."""
    raw = kind.model.model_json_schema(by_alias=True)
    schema = structural(raw, raw.get("$defs", {}))
    parts = schema["properties"]
    parts["apiVersion"] = {"description": f"{GROUP}/{VERSION}.", "type": "string"}
    parts["kind"] = {"description": f"{kind.name}.", "type": "string"}
    parts["metadata"] = {"type": "object"}
    if "status" in parts:
        parts["status"] = without_defaults(parts["status"])
    if not kind.has_spec_defaults:
        parts["spec"] = without_defaults(parts["spec"])
    return schema | {"required": ["spec"]}


def crd(kind: Kind) -> Schema:
    """The CustomResourceDefinition."""
    columns = [
        {"name": name, "jsonPath": path, "type": type_} | ({"priority": priority} if priority else {})
        for name, path, type_, priority in kind.columns
    ]
    version: Schema = {"name": VERSION, "served": True, "storage": True}
    if kind.subresources:
        version["subresources"] = dict(kind.subresources)
    version |= {"additionalPrinterColumns": columns, "schema": {"openAPIV3Schema": root_schema(kind)}}
    names: Schema = {
        "kind": kind.name,
        "listKind": f"{kind.name}List",
        "plural": kind.plural,
        "singular": kind.name.lower(),
        "shortNames": [kind.short],
    }
    if kind.categories:
        names["categories"] = list(kind.categories)
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": kind.crd_name},
        "spec": {"group": GROUP, "scope": kind.scope, "names": names, "versions": [version]},
    }


class _Dumper(yaml.SafeDumper):
    """Without aliases, because a reader should not have to jump, and with every collection that fits into a line in one line."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True

    def represent_data(self, data: Any) -> yaml.Node:
        node = super().represent_data(data)
        if isinstance(node, yaml.CollectionNode):
            node.flow_style = len(str(data)) <= ONE_LINE
        return node


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    """PyYAML would leave `1e-3` bare, which YAML 1.2, and so kubectl, reads as a number, and would double the quotes of a rule."""
    needs_no_escape = "'" in value and not set('"\\') & set(value)
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="'" if value[:1].isdigit() else '"' if needs_no_escape else None)


_Dumper.add_representer(str, _text)


def dump(document: Schema) -> str:
    """The document as YAML, in its own order. Indentation would be a third of the file: a small part is one line, and no text is folded."""
    text: str = yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=math.inf, allow_unicode=True)
    return "# Generated by `python -m slipway.crdgen` from operator/src/slipway/api; do not edit.\n" + text


@cache
def generated_files() -> Mapping[str, str]:
    """Every generated file: path from the root of the repository, and content."""
    folders = ("crds", "charts/slipway/files/crds")  # Helm reads nothing outside a chart
    texts = {kind.plural: dump(crd(kind)) for kind in KINDS}
    files = {f"{folder}/{plural}.yaml": text for folder in folders for plural, text in texts.items()}
    pages = [(kind.name, kind.short, kind.scope, root_schema(kind)) for kind in KINDS]
    return files | {"docs/reference/api.md": api_page(pages), "docs/reference/reasons.md": reasons_page()}


def stale_files(root: Path) -> list[str]:
    """The generated files that are not what the models say."""
    return [
        path for path, text in generated_files().items() if not (root / path).is_file() or (root / path).read_text(encoding="utf-8") != text
    ]


def main(arguments: list[str] | None = None) -> int:
    """The command; exit code 1 when `--check` finds a difference."""
    parser = argparse.ArgumentParser(prog="python -m slipway.crdgen", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file differs from what the models say")
    parser.add_argument("--root", type=Path, default=ROOT, help="root of the repository")
    options = parser.parse_args(arguments)
    stale = stale_files(options.root)
    files = generated_files()
    for path in stale:
        print(f"{path} differs from the models; run `make generate`" if options.check else f"wrote {path}")
        if not options.check:
            (options.root / path).parent.mkdir(parents=True, exist_ok=True)
            (options.root / path).write_text(files[path], encoding="utf-8")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
