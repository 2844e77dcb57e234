"""The page at ``/docs``: every operation of the OpenAPI description, as plain HTML that loads nothing from anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, Final

POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""The Content-Security-Policy of the page."""

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24 }
code, pre { font-family: ui-monospace, monospace; font-size: .9em }
pre { background: #f4f6f8; padding: .7rem; overflow-x: auto; border-radius: 4px }
details { border: 1px solid #d0d7de; border-radius: 6px; margin: .6rem 0; padding: .5rem .8rem }
summary { cursor: pointer } summary b { display: inline-block; min-width: 4.5rem }
table { border-collapse: collapse } td, th { text-align: left; padding: .15rem 1rem .15rem 0; vertical-align: top }
"""


def render(openapi: Mapping[str, Any]) -> str:
    """Renders a description."""
    info = openapi["info"]
    operations = "".join(
        _operation(method, path, operation, openapi)
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    )
    title = escape(f"{info['title']} {info['version']}")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<h1>{title}</h1><p>{escape(info.get('description', ''))}</p>"
        f'<p>For programs: <a href="openapi.json">openapi.json</a></p>{operations}</html>'
    )


def _operation(method: str, path: str, operation: Mapping[str, Any], openapi: Mapping[str, Any]) -> str:
    head = f"<b>{method.upper()}</b> <code>{escape(path)}</code> {escape(operation['summary'])}"
    return (
        f"<details><summary>{head}</summary>"
        f"<p>{escape(operation.get('description', ''))}</p>{''.join(_parts(operation, openapi))}</details>"
    )


def _parts(operation: Mapping[str, Any], openapi: Mapping[str, Any]) -> Iterator[str]:
    parameters = operation.get("parameters", ())
    if parameters:
        given = ((p["name"], p["in"], _kind(p["schema"]), p.get("description", "")) for p in parameters)
        yield _table(("parameter", "in", "type", "meaning"), given)
    for kind, body in operation.get("requestBody", {}).get("content", {}).items():
        yield f"<p>Body: <code>{escape(kind)}</code></p>{''.join(_examples(body))}"
        fields = _resolved(body.get("schema", {}), openapi).get("properties", {})
        if fields:
            rows = ((name, _kind(field), field.get("description", "")) for name, field in fields.items())
            yield _table(("field", "type", "meaning"), rows)
    answers = operation.get("responses", {})
    yield _table(("answer", "meaning"), ((code, answer["description"]) for code, answer in answers.items()))
    for answer in answers.values():
        for body in answer.get("content", {}).values():
            yield from _examples(body)


def _examples(body: Mapping[str, Any]) -> Iterator[str]:
    if "example" in body:
        yield _block(body["example"])
    for example in body.get("examples", {}).values():
        yield f"<p>{escape(example.get('summary', ''))}</p>{_block(example['value'])}"


def _block(value: Any) -> str:
    return f"<pre>{escape(json.dumps(value, indent=2, ensure_ascii=False))}</pre>"


def _table(names: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _kind(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(str(value) for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(_kind(inner) for inner in schema["anyOf"])
    return str(schema.get("type", "string" if "$ref" in schema else "any"))


def _resolved(schema: Mapping[str, Any], openapi: Mapping[str, Any]) -> Mapping[str, Any]:
    if "anyOf" in schema:
        return _resolved(schema["anyOf"][0], openapi)
    found: Mapping[str, Any] = schema
    for part in schema.get("$ref", "").split("/")[1:]:
        found = openapi[part] if found is schema else found[part]
    return found
