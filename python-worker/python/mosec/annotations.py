"""What `forward` says about the types of its requests and results."""

import inspect
from typing import Any, get_args, get_origin, get_type_hints

from mosec.worker import Worker


def of_request(worker: type[Worker], batching: bool) -> Any:
    """Type of one request; `Any` where nothing is said.

    `batching`: whether `forward` gets lists; then `list[T]` means T. Raises whatever a name raises that is not there.
    """
    parameters = list(inspect.signature(worker.forward).parameters)
    if not isinstance(inspect.getattr_static(worker, "forward"), staticmethod | classmethod):
        parameters = parameters[1:]
    return _one(_hint(worker, parameters[0]), batching) if parameters else Any


def of_result(worker: type[Worker], batching: bool) -> Any:
    """The same of one result."""
    return _one(_hint(worker, "return"), batching)


def _hint(worker: type[Worker], name: str) -> Any:
    """One annotation, whatever is wrong with the others: some name what is there for type checkers alone."""
    try:
        return get_type_hints(worker.forward).get(name, Any)
    except Exception:
        function = inspect.unwrap(worker.forward)

        def alone() -> None: ...

        alone.__annotations__ = {key: hint for key, hint in function.__annotations__.items() if key == name}
        return get_type_hints(alone, getattr(function, "__globals__", {})).get(name, Any)


def _one(annotation: Any, batching: bool) -> Any:
    items = get_args(annotation)
    return items[0] if batching and get_origin(annotation) is list and items else annotation
