"""The page that describes the service, `/docs`: its OpenAPI as plain HTML, without scripts."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any, Final

from vggkit.reports.pages.rendering import render_page

DOCS_PATH: Final = "/docs"
STYLE_PATH: Final = "/docs.css"
METHODS: Final = ("get", "post")
EXAMPLES: Final = {
    "/predict": (
        "curl -F files=@cat.jpg 'http://localhost:8000/predict?top=3&explain=true'",
        "curl --data-binary @cat.jpg -H 'Content-Type: image/jpeg' http://localhost:8000/predict",
    ),
    "/embed": ("curl -F files=@cat.jpg -F files=@dog.jpg http://localhost:8000/embed",),
    "/model": ("curl http://localhost:8000/model",),
    "/ready": ("curl http://localhost:8000/ready",),
}


@dataclass(frozen=True, slots=True)
class Row:
    """A parameter, a field or a response."""

    names: tuple[str, ...]
    """Its name, or those of several that are alike."""
    kind: str
    text: str
    target: str | None = None
    """The schema that `kind` names."""


@dataclass(frozen=True, slots=True)
class Operation:
    """A method of a path."""

    method: str
    path: str
    summary: str
    options: list[Row]
    bodies: list[Row]
    responses: list[Row]
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Schema:
    """A record by its fields."""

    name: str
    text: str
    fields: list[Row]


def write_docs(described: Mapping[str, Any]) -> bytes:
    """The page for an OpenAPI description."""
    operations = [
        _read_operation(method, path, methods[method])
        for path, methods in described["paths"].items()
        for method in METHODS
        if method in methods
    ]
    schemas = [
        Schema(
            name,
            schema.get("description", ""),
            [_read_field(field, each, schema) for field, each in schema.get("properties", {}).items()],
        )
        for name, schema in sorted(described["components"]["schemas"].items())
        if schema.get("properties") and not name.startswith(("HTTPValidation", "Validation"))
    ]
    values = {"info": described["info"], "operations": operations, "schemas": schemas}
    return render_page("service_docs.html", values).encode()


def read_style() -> bytes:
    """The page's style sheet."""
    return files("vggkit.reports.pages").joinpath("service_docs.css").read_bytes()


def _read_operation(method: str, path: str, given: Mapping[str, Any]) -> Operation:
    options = [
        Row((each["name"],), _name_type(each["schema"])[0], each.get("description", ""))
        for each in given.get("parameters", [])
    ]
    content = given.get("requestBody", {}).get("content", {})
    bodies = _join([Row((kind,), *_describe_content(each)) for kind, each in content.items()])
    responses = []
    for status, response in given["responses"].items():
        kinds = [(kind, *_name_type(each.get("schema", {}))) for kind, each in response.get("content", {}).items()]
        named = next(((name, target) for _, name, target in kinds if target), (kinds[0][0] if kinds else "", None))
        responses.append(Row((status,), named[0], response.get("description", ""), named[1]))
    return Operation(
        method.upper(), path, given.get("description", ""), options, bodies, responses, EXAMPLES.get(path, ())
    )


def _join(rows: list[Row]) -> list[Row]:
    """The rows, those that differ in their names alone as one."""
    alike: dict[tuple[str, str], Row] = {}
    for row in rows:
        before = alike.get((row.kind, row.text))
        alike[row.kind, row.text] = row if before is None else replace(before, names=before.names + row.names)
    return list(alike.values())


def _describe_content(given: Mapping[str, Any]) -> tuple[str, str, str | None]:
    """Type, text and schema of one kind of body."""
    schema = given["schema"]
    name, target = _name_type(schema)
    if schema.get("properties"):
        return "form", f"one file or several in the field {', '.join(schema['properties'])}", None
    return (name, "", target) if target else ("bytes", "one image", None)


def _read_field(name: str, given: Mapping[str, Any], schema: Mapping[str, Any]) -> Row:
    kind, target = _name_type(given)
    optional = "" if name in schema.get("required", ()) else " optional"
    return Row((name,), kind + optional, given.get("description", ""), target)


def _name_type(schema: Mapping[str, Any]) -> tuple[str, str | None]:
    """A type in words, and the schema that it names."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return name, name
    if "anyOf" in schema:
        kinds = [_name_type(each) for each in schema["anyOf"]]
        return " or ".join(name for name, _ in kinds), next((target for _, target in kinds if target), None)
    if schema.get("type") == "array":
        name, target = _name_type(schema.get("items", {}))
        return (f"list of {name}" if name else "list"), target
    kind = str(schema.get("type", ""))
    least, most = schema.get("minimum"), schema.get("maximum")
    return (f"{kind}, {least} to {most}" if least is not None and most is not None else kind), None
