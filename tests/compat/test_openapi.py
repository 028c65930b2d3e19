"""The description of the service, and its page."""

import json
import re

from harness import ABSENT, ANY, Difference, Response, Run, case

MORE = "announced: bodies and answers of every route are described, typed or not"
TAG = "announced: that a document is unchanged is told by its tag; there are no parts of documents"
PATHS = ("/packed", "/typed", "/typed/batch", "/array")


@case(
    differs=[
        Difference("version", "3.2.0", "3.1.0", "announced: the version that tools read"),
        *(Difference(f"{path} / request", ANY, re.compile(".*"), MORE) for path in PATHS),
        *(Difference(f"{path} / answers / 200", [], ANY, MORE) for path in PATHS),
        *(
            Difference(f"{key} / header {header}", ANY, ABSENT, TAG)
            for key in ("document", "page")
            for header in ("accept-ranges", "last-modified")
        ),
        Difference("page / header vary", ABSENT, "accept-encoding", "announced: the page is kept packed"),
    ],
)
def test_openapi(run: Run) -> None:
    """Where it is, and what it says of routes and types."""
    with run.serve("mixins.py") as service:
        document = service.get("/openapi/metadata.json")
        described = json.loads(document.body)
        run.see("version", described["openapi"], spec="3.2.0")
        run.see("title", described["info"]["title"], spec="Mosec API")
        run.see("paths", {path: sorted(methods) for path, methods in described["paths"].items()})
        for path in PATHS:
            operation = described["paths"][path]["post"]
            run.see(f"{path} / request", json.dumps(operation.get("requestBody"), sort_keys=True))
            answers = operation["responses"]
            run.see(f"{path} / answers", {code: sorted(answers[code].get("content", {})) for code in answers})
        for name, part in described.get("components", {}).items():
            run.see(f"components / {name}", json.dumps(part, sort_keys=True))
        document.body = b""
        run.see("document", length_apart(document), spec={"status": 200, "header content-type": "application/json"})
        tag = document.header("etag") or ""
        run.see("unchanged", service.get("/openapi/metadata.json", headers={"if-none-match": tag}).status, spec=304)
        moved = {"status": 307, "header location": "/openapi/swagger/"}
        run.see("swagger", service.get("/openapi/swagger"), spec=moved)
        page = service.get("/openapi/swagger/")
        html = page.body.decode()
        run.see("page names the document", "/openapi/metadata.json" in html or "Mosec API" in html, spec=True)
        page.body = b""
        run.see("page", length_apart(page), spec={"status": 200})
        for method in ("POST", "HEAD"):
            run.see(f"{method} document", service.ask(method, "/openapi/metadata.json").status)
        run.see("/openapi", service.get("/openapi").status)
        run.see("with a query", service.get("/openapi/swagger?a=b"), spec=moved)
        run.see("beside the page", service.get("/openapi/swagger/other.js").status, spec=404)


def length_apart(answer: Response) -> Response:
    """The answer without how long it is."""
    answer.headers = [(name, "<length>" if name == "content-length" else value) for name, value in answer.headers]
    return answer
