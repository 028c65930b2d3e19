"""The OpenAPI document: valid, with what the workers' annotations say and no more."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypedDict, TypeVar

import msgspec
import pydantic
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from mosec import Runtime, Worker, openapi
from mosec.mixin import MsgpackMixin, TypedMsgPackMixin

if TYPE_CHECKING:
    from nowhere import Missing


class Point(msgspec.Struct):
    x: int
    label: Literal["a", "b"] = "a"


class Named(TypedDict):
    name: str


@dataclass
class Box:
    corner: Point
    next: "Box | None" = None


Item = TypeVar("Item")


class Inner(pydantic.BaseModel):
    size: int = 1


class Model(pydantic.BaseModel, Generic[Item]):
    item: Item
    inner: Inner


class Tree(pydantic.BaseModel):
    below: list["Tree"] = []


class Untyped(Worker):
    def forward(self, data):  # type: ignore[no-untyped-def]
        return data


class Typed(TypedMsgPackMixin):
    def forward(self, data: list[Point]) -> list[Box]:
        return [Box(point) for point in data]


class Json(Worker):
    def forward(self, data: Named) -> dict[str, float]:
        return {data["name"]: 1.5}


class Page(Untyped):
    resp_mime_type = "text/html"
    req_mime_type = "image/png"

    def deserialize(self, data: bytes) -> bytes:
        return data

    def serialize(self, data: str) -> bytes:
        return data.encode()

    def forward(self, data: bytes) -> str:
        return str(len(data))


def described(routes: dict[str, list[Runtime]]) -> dict[str, Any]:
    found = json.loads(openapi.document(routes))
    OpenAPIV31SpecValidator(found).validate()
    return found


def bodies(found: dict[str, Any], path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Contents of a route's requests and answers."""
    operation = found["paths"][path]["post"]
    return operation["requestBody"]["content"], operation["responses"]["200"]["content"]


def test_a_service_without_annotations() -> None:
    found = described({"/inference": [Runtime(Untyped), Runtime(Page)], "/v1/echo": [Runtime(Untyped)]})
    assert (found["openapi"], found["info"]["title"]) == ("3.1.0", "Mosec API")
    assert bodies(found, "/inference") == (
        {"application/json": {"schema": {}}},
        {"text/html": {"schema": {"type": "string"}}},
    )
    assert found["paths"]["/inference"]["post"]["summary"] == "Untyped, Page"
    assert found["components"] == {"schemas": {}}
    assert {path: list(methods) for path, methods in found["paths"].items()} == {
        "/": ["get"],
        "/metrics": ["get"],
        "/inference": ["post"],
        "/v1/echo": ["post"],
    }


def test_each_route_has_the_errors_of_the_gateway() -> None:
    found = described({"/a": [Runtime(Untyped)]})
    responses = found["paths"]["/a"]["post"]["responses"]
    assert sorted(responses) == ["200", "400", "408", "413", "422", "429", "500", "503"]
    for status in sorted(responses)[1:]:
        error = responses[status]
        assert "plain text" in error["description"] and "content" not in error


def test_types_become_components() -> None:
    found = described({"/typed": [Runtime(Typed, max_batch_size=4)], "/json": [Runtime(Json)]})
    ref = {name: {"$ref": f"#/components/schemas/{name}"} for name in ("Point", "Box", "Named")}
    assert bodies(found, "/typed") == (
        {"application/msgpack": {"schema": ref["Point"]}},
        {"application/msgpack": {"schema": ref["Box"]}},
    )
    assert bodies(found, "/json") == (
        {"application/json": {"schema": ref["Named"]}},
        {"application/json": {"schema": {"type": "object", "additionalProperties": {"type": "number"}}}},
    )
    schemas = found["components"]["schemas"]
    assert set(schemas) == {"Point", "Box", "Named"}
    assert schemas["Point"]["properties"]["label"] == {"enum": ["a", "b"], "default": "a"}


def test_a_list_is_one_request_only_where_the_stage_batches() -> None:
    request, _ = bodies(described({"/a": [Runtime(Typed)]}), "/a")
    assert request["application/msgpack"]["schema"]["type"] == "array"


def test_first_and_last_stage_count() -> None:
    found = described({"/a": [Runtime(Json), Runtime(Untyped), Runtime(Typed, max_batch_size=2)]})
    request, answer = bodies(found, "/a")
    assert list(request) == ["application/json"] and list(answer) == ["application/msgpack"]
    assert request["application/json"]["schema"] == {"$ref": "#/components/schemas/Named"}
    assert answer["application/msgpack"]["schema"] == {"$ref": "#/components/schemas/Box"}


class Described(Worker):
    def forward(self, data: Model[int]) -> Tree:
        return Tree()


def test_types_that_describe_themselves() -> None:
    found = described({"/a": [Runtime(Described)]})
    request, answer = bodies(found, "/a")
    assert request["application/json"]["schema"] == {"$ref": "#/components/schemas/Model_int_"}
    assert answer["application/json"]["schema"] == {"$ref": "#/components/schemas/Tree"}
    schemas = found["components"]["schemas"]
    assert set(schemas) == {"Model_int_", "Inner", "Tree"}
    assert schemas["Model_int_"]["properties"]["inner"] == {"$ref": "#/components/schemas/Inner"}
    assert schemas["Tree"]["properties"]["below"]["items"] == {"$ref": "#/components/schemas/Tree"}


@pytest.mark.parametrize("module", ["elsewhere", __name__])
def test_two_types_of_one_name_are_kept_apart(module: str) -> None:
    other = msgspec.defstruct("Point", [("z", str)], module=module)

    class Other(Worker):
        def forward(self, data: other) -> None:  # type: ignore[valid-type]
            return None

    found = described({"/a": [Runtime(Typed, max_batch_size=2)], "/b": [Runtime(Other)]})
    first = bodies(found, "/a")[0]["application/msgpack"]["schema"]["$ref"].rpartition("/")[2]
    second = bodies(found, "/b")[0]["application/json"]["schema"]
    schemas = found["components"]["schemas"]
    assert set(schemas[first]["properties"]) == {"x", "label"}
    if module == "elsewhere":
        assert set(schemas[second["$ref"].rpartition("/")[2]]["properties"]) == {"z"}
    else:
        assert second == {}, "nothing tells the two apart"


class Unknown(Worker):
    def forward(self, data: "Missing") -> int:
        return 1


class Foreign(Worker):
    def forward(self, data: Runtime, more: int = 0) -> "list[Runtime]":
        return [data]


class OwnCodec(Worker):
    def deserialize(self, data: bytes) -> Any:
        return Point(1)

    def forward(self, data: Point) -> Point:
        return data


class Static(MsgpackMixin, Worker):
    @staticmethod
    def forward(data: Point) -> None:  # type: ignore[override]
        return None


class Bad(Worker):
    def forward(self, data: type("Bad", (), {"model_json_schema": lambda **_: {"const": float("nan")}})) -> Any:  # type: ignore[valid-type] # noqa: F821
        return data


@pytest.mark.parametrize(
    ("worker", "request_schema", "answer_schema"),
    [
        (Unknown, {}, {"type": "integer"}),
        (Foreign, {}, {}),
        (OwnCodec, {}, {"$ref": "#/components/schemas/Point"}),
        (Static, {"$ref": "#/components/schemas/Point"}, {"type": "null"}),
        (Bad, {}, {}),
    ],
)
def test_what_cannot_be_told_is_left_open(worker: type[Worker], request_schema: Any, answer_schema: Any) -> None:
    request, answer = bodies(described({"/a": [Runtime(worker)]}), "/a")
    assert [body["schema"] for body in request.values()] == [request_schema]
    assert [body["schema"] for body in answer.values()] == [answer_schema]


def test_a_document_stays_below_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    routes = {"/a": [Runtime(Typed, max_batch_size=2)]}
    whole = len(openapi.document(routes))
    monkeypatch.setattr(openapi, "_MAX_BYTES", whole - 1)
    assert not described(routes)["components"]["schemas"]
    monkeypatch.setattr(openapi, "_MAX_BYTES", whole)
    assert described(routes)["components"]["schemas"]


SERVICE = """
import sys
sys.modules["msgspec"] = None  # as if it were not installed
from mosec import Server, Worker
class Echo(Worker):
    def forward(self, data: dict) -> list[int]:
        return []
if __name__ == "__main__":
    server = Server()
    server.append_worker(Echo, route="/echo")
    server.run()
"""


def test_a_script_s_specification_carries_it(tmp_path: Path, python_path: str) -> None:
    script = tmp_path / "server.py"
    script.write_text(SERVICE)
    command = [sys.executable, "-m", "mosec.inspect", str(script)]
    done = subprocess.run(command, env={"PYTHONPATH": python_path}, capture_output=True, text=True)
    found = json.loads(json.loads(done.stdout)["spec"]["openapi"])
    OpenAPIV31SpecValidator(found).validate()
    assert bodies(found, "/echo") == ({"application/json": {"schema": {}}},) * 2
