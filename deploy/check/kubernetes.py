#!/usr/bin/env python3
"""Checks manifests on standard input: Kubernetes' own kinds with kubernetes-validate, others against the definitions (CRDs) that are named.

Usage: kustomize build … | kubernetes.py CRD.yaml…
A property that a schema does not know is an error, as a cluster would drop it.
"""
import copy
import sys

import jsonschema
import kubernetes_validate
import yaml


def closed(schema):
    """The schema of a CRD as JSON Schema: no unknown properties, and a number or a text where it says so."""
    if not isinstance(schema, dict):
        return schema
    schema = {name: closed(value) if name in ("items", "not") else value for name, value in schema.items()}
    if schema.pop("x-kubernetes-int-or-string", False):
        schema.pop("type", None)
        schema.pop("pattern", None)
        schema["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if "properties" in schema:
        schema["properties"] = {name: closed(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
    if isinstance(schema.get("additionalProperties"), dict):
        schema["additionalProperties"] = closed(schema["additionalProperties"])
    return schema


def definitions(names):
    found = {}
    for name in names:
        with open(name, encoding="utf-8") as file:
            spec = yaml.safe_load(file)["spec"]
        for version in spec["versions"]:
            schema = copy.deepcopy(version["schema"]["openAPIV3Schema"])
            # Their own schema is that of every object.
            schema["properties"]["metadata"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
            found[f"{spec['group']}/{version['name']}", spec["names"]["kind"]] = closed(schema)
    return found


def main():
    known = definitions(sys.argv[1:])
    checked = []
    for document in yaml.safe_load_all(sys.stdin):
        kind, version = document["kind"], document["apiVersion"]
        schema = known.get((version, kind))
        try:
            if schema is None:
                kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
            else:
                jsonschema.Draft7Validator(schema).validate(document)
        except Exception as error:
            sys.exit(f"{kind} {document['metadata']['name']}: {error}")
        checked.append(kind)
    print(", ".join(sorted(checked)))


main()
