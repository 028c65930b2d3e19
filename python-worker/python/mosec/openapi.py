"""The OpenAPI document of a service: its routes, and what the annotations of its workers say about them.

A type is described where the package `msgspec` or the type itself (as pydantic's models do) can tell its schema, and
where this package's own codecs write and read it. Anything else is left open. Nothing here keeps a service from
starting.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from mosec import annotations
from mosec.log import internal_logger
from mosec.runtime import Runtime
from mosec.worker import Worker

try:
    from mosec._native import __version__
except ModuleNotFoundError:  # the source tree alone, without the extension
    __version__ = "0"

# `MAX_OPENAPI_BYTES` of crates/types/src/spec.rs.
_MAX_BYTES = 1024 * 1024
_COMPONENTS = "#/components/schemas/"
_OPEN: dict[str, Any] = {}
_TEXT = {"type": "string"}
_ERRORS = {
    400: "The request cannot be decoded, or its worker refuses it.",
    408: "There was no answer in time.",
    413: "The request's body is over the limit.",
    422: "The request is not what its worker expects.",
    429: "Too many requests wait already.",
    500: "A worker failed.",
    503: "The service is shutting down, or no worker is ready.",
}


def document(routes: Mapping[str, Sequence[Runtime]]) -> str:
    """The document as JSON text. `routes`: the stages of each path, in order."""
    exchanged = {path: _exchanged(stages) for path, stages in routes.items()}
    schemas = _Schemas([type_ for types in exchanged.values() for type_ in types if type_ is not Any])
    try:
        text = json.dumps(_describe(routes, exchanged, schemas), allow_nan=False)
        if len(text) <= _MAX_BYTES:
            return text
        problem = f"it would have over {_MAX_BYTES} bytes"
    except (TypeError, ValueError) as error:  # a schema that a type tells of itself
        problem = str(error)
    internal_logger().warning("the OpenAPI document leaves types out: %s", problem)
    return json.dumps(_describe(routes, exchanged, _Schemas([])))


def _describe(
    routes: Mapping[str, Sequence[Runtime]], exchanged: Mapping[str, tuple[Any, Any]], schemas: "_Schemas"
) -> dict[str, Any]:
    # In full for each route: gateways that make one document of several take paths and schemas alone.
    # No `content`, which would promise a content type: errors have none, as MOSEC's.
    errors = {
        str(status): {"description": f"{text} The body says in plain text why."} for status, text in _ERRORS.items()
    }
    paths: dict[str, Any] = _own_paths()
    for path, stages in routes.items():
        request, result = map(schemas.of, exchanged[path])
        answer = {"description": "The result.", "content": _content(stages[-1].worker.resp_mime_type, result)}
        operation = {
            "summary": ", ".join(stage.worker.__name__ for stage in stages),
            "requestBody": {"required": True, "content": _content(stages[0].worker.req_mime_type, request)},
            "responses": {"200": answer} | errors,
        }
        paths[path] = {"post": operation}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Mosec API", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas.components},
    }


def _own_paths() -> dict[str, Any]:
    """What the gateway answers of itself, where it is asked by GET."""
    health = {"200": _text_response("It takes requests."), "503": _text_response("It is shutting down.")}
    metrics = {"200": _text_response("In the text format of Prometheus.")}
    return {
        "/": {"get": {"summary": "Health", "responses": health}},
        "/metrics": {"get": {"summary": "Metrics", "responses": metrics}},
    }


def _text_response(description: str) -> dict[str, Any]:
    return {"description": description, "content": _content("text/plain", _OPEN)}


def _content(mime: str, schema: dict[str, Any]) -> dict[str, Any]:
    """A body of this type. Text is text, whatever it is made from: of a stream of events, `forward` returns nothing."""
    return {mime: {"schema": _TEXT if mime.startswith("text/") else schema}}


def _exchanged(stages: Sequence[Runtime]) -> tuple[Any, Any]:
    """Types of a route's requests and results, each `Any` where its worker has a codec of its own."""
    first, last = stages[0], stages[-1]
    request = _annotated(first, annotations.of_request) if _is_ours(first.worker, "deserialize") else Any
    result = _annotated(last, annotations.of_result) if _is_ours(last.worker, "serialize") else Any
    return request, result


def _annotated(stage: Runtime, of: Callable[[type[Worker], bool], Any]) -> Any:
    try:
        return of(stage.worker, stage.max_batch_size > 1)
    except Exception as error:  # names for type checkers alone, or of a module that is not there
        internal_logger().warning("%s: the types of `forward` are not known: %s", stage.name, error)
        return Any


def _is_ours(worker: type[Worker], codec: str) -> bool:
    """Whether what the codec reads or writes is what `forward` takes or gives."""
    return getattr(worker, codec).__module__.partition(".")[0] == "mosec"


class _Schemas:
    """The schemas of some types, by what the type is: one component for each that has a name."""

    def __init__(self, types: list[Any]) -> None:
        self.components: dict[str, Any] = {}
        self._known: list[tuple[Any, dict[str, Any]]] = []
        self._add_by_msgspec([type_ for type_ in types if not _describes_itself(type_)])
        for type_ in filter(_describes_itself, types):
            self._add_by_itself(type_)

    def of(self, type_: Any) -> dict[str, Any]:
        # Some types cannot be hashed, as `Annotated` of a list.
        return next((schema for known, schema in self._known if known == type_), _OPEN)

    def _add_by_msgspec(self, types: list[Any]) -> None:
        if not types:
            return
        try:
            import msgspec
        except ImportError:
            return
        describe = partial(msgspec.json.schema_components, ref_template=f"{_COMPONENTS}{{name}}")
        # Each alone, to leave out those it does not know; then together, for names that differ.
        alone = [(type_, _attempt(describe, [type_])) for type_ in types]
        alone = [(type_, found) for type_, found in alone if found is not None]
        together = _attempt(describe, [type_ for type_, _ in alone])
        if together is not None:
            schemas, self.components = together
            self._known += zip((type_ for type_, _ in alone), schemas, strict=True)
        else:  # types of the same name and module
            for type_, ((schema,), components) in alone:
                self._add(type_, schema, components)

    def _add_by_itself(self, type_: Any) -> None:
        schema = _attempt(type_.model_json_schema, ref_template=f"{_COMPONENTS}{{model}}")
        if not isinstance(schema, dict):
            return
        components = dict(schema.get("$defs", {}))
        schema = {key: schema[key] for key in schema if key != "$defs"}
        if set(schema) != {"$ref"}:  # which is a type that contains itself, and a component already
            name = re.sub(r"[^A-Za-z0-9._-]", "_", type_.__name__)
            components[name], schema = schema, {"$ref": f"{_COMPONENTS}{name}"}
        self._add(type_, schema, components)

    def _add(self, type_: Any, schema: dict[str, Any], components: dict[str, Any]) -> None:
        """Takes the type in, unless another has a name of its components."""
        if all(self.components.get(name, found) == found for name, found in components.items()):
            self.components |= components
            self._known.append((type_, schema))


def _describes_itself(type_: Any) -> bool:
    return isinstance(type_, type) and hasattr(type_, "model_json_schema")


def _attempt(describe: Any, *arguments: Any, **options: Any) -> Any:
    """What the function says, `None` where the type is beyond it."""
    try:
        return describe(*arguments, **options)
    except Exception:  # code of the type's own may run
        return None
