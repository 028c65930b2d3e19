"""What `forward` says about the types of its requests and results."""

import inspect
from typing import Any, get_args, get_origin, get_type_hints

from mosec.worker import Worker


def of_forward(worker: type[Worker], batching: bool) -> tuple[Any, Any]:
    """Types of one request and of one result; `Any` where nothing is said.

    `batching`: whether `forward` gets lists; then `list[T]` means T. Raises whatever a name raises that is not there.
    """
    hints = get_type_hints(worker.forward)
    parameters = list(inspect.signature(worker.forward).parameters)
    if not isinstance(inspect.getattr_static(worker, "forward"), staticmethod | classmethod):
        parameters = parameters[1:]
    request = hints.get(parameters[0], Any) if parameters else Any
    return _one(request, batching), _one(hints.get("return", Any), batching)


def _one(annotation: Any, batching: bool) -> Any:
    items = get_args(annotation)
    return items[0] if batching and get_origin(annotation) is list and items else annotation
