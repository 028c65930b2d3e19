//! The service's description, as a document and as a page, and whether the gateway works.

use std::io::Read as _;
use std::sync::Arc;

use mosec_gateway::Config;
use mosec_types::topology::Phase;
use mosec_types::{ErrorCode, PipelineSpec};

use crate::bench::{Bench, ONE, answer, deployment, eventually, key, only, spec, topology};
use crate::client::{Answer, BOTH, Version, body};

const DOCUMENT: &str = "/openapi/metadata.json";
const SWAGGER: &str = "/openapi/swagger/";

#[tokio::test]
async fn a_pipelines_own_document_is_served_as_it_is() {
    let text = "{\"openapi\":  \"3.2.0\"}";
    let bench = Bench::start(PipelineSpec {
        openapi: Some(text.into()),
        ..spec()
    })
    .await;
    for version in BOTH {
        let mut client = bench.client(version).await;
        let document = client.request("GET", DOCUMENT, body("")).await;
        assert_eq!(
            (document.status.as_u16(), document.text()),
            (200, text),
            "{version:?}"
        );
        assert_eq!(
            (document.header("content-type"), document.header("server")),
            (Some("application/json"), None)
        );
        let tag = document.header("etag").unwrap();
        let known = client
            .send("GET", DOCUMENT, &[("if-none-match", tag)], body(""))
            .await;
        assert_eq!((known.status.as_u16(), known.text()), (304, ""));
        assert_eq!(known.header("etag"), Some(tag));
        let other = client
            .send("GET", DOCUMENT, &[("if-none-match", "\"other\"")], body(""))
            .await;
        assert_eq!(other.text(), text);
        let head = client.request("HEAD", DOCUMENT, body("")).await;
        assert_eq!(
            (head.status.as_u16(), head.text(), head.header("etag")),
            (200, "", Some(tag))
        );
    }
}

#[tokio::test]
async fn without_one_the_routes_are_described() {
    let bench = Bench::start(spec()).await;
    let document = bench
        .client(Version::Http1)
        .await
        .request("GET", DOCUMENT, body(""))
        .await;
    let document: serde_json::Value = serde_json::from_slice(&document.body).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    let paths: Vec<_> = document["paths"].as_object().unwrap().keys().collect();
    assert_eq!(paths, ["/inference", "/text"]);
}

#[tokio::test]
async fn the_page_needs_nothing_from_elsewhere() {
    let bench = Bench::start(spec()).await;
    let mut client = bench.client(Version::Http1).await;
    let moved = client.request("GET", "/openapi/swagger", body("")).await;
    assert_eq!(
        (moved.status.as_u16(), moved.header("location"), moved.text()),
        (307, Some(SWAGGER), "")
    );
    let plain = client.request("GET", SWAGGER, body("")).await;
    assert_eq!(
        (plain.status.as_u16(), plain.header("content-type")),
        (200, Some("text/html"))
    );
    assert!(plain.text().starts_with("<!DOCTYPE html>"));
    for reference in ["<script src=", "<link rel=\"stylesheet\"", "@import "] {
        assert!(!plain.text().contains(reference), "{reference}");
    }
    let packed = client
        .send("GET", SWAGGER, &[("accept-encoding", "br, gzip")], body(""))
        .await;
    assert_eq!(packed.header("content-encoding"), Some("gzip"));
    let mut unpacked = String::new();
    flate2::read::GzDecoder::new(&packed.body[..])
        .read_to_string(&mut unpacked)
        .unwrap();
    assert_eq!(unpacked, plain.text());
    let tag = packed.header("etag").unwrap();
    let known = client
        .send(
            "GET",
            SWAGGER,
            &[("accept-encoding", "gzip"), ("if-none-match", tag)],
            body(""),
        )
        .await;
    assert_eq!(known.status, 304);
}

#[tokio::test]
async fn a_gateway_is_well_between_its_first_topology_and_its_drain() {
    let bench = Bench::with_config(Config::default(), Arc::default()).await;
    for version in BOTH {
        let early = health(&bench, version).await;
        let reason = "it has not heard from the control plane yet which pipelines there are\n";
        assert_eq!(
            (early.status.as_u16(), early.text()),
            (503, reason),
            "{version:?}"
        );
        let mut client = bench.client(version).await;
        // To MOSEC's clients it is there.
        assert_eq!(client.request("GET", "/", body("")).await.status, 200);
        let head = client.request("HEAD", "/healthz", body("")).await;
        assert_eq!((head.status.as_u16(), head.text()), (503, ""));
    }
    // That of a cluster in which nothing has happened yet is no different from none.
    bench.topology.send(Arc::default()).unwrap();
    eventually("it is well", async || {
        health(&bench, Version::Http1).await.text() == "ok\n"
    })
    .await;
    bench
        .topology
        .send(topology(1, vec![deployment(1, spec(), Phase::Serving)]))
        .unwrap();
    eventually("the route is there", async || {
        bench.registry.dispatcher(key(1, 0)).is_some()
    })
    .await;
    bench.grant(key(1, 0), ONE);
    let _running = bench.post(Version::Http1, "{}");
    let (_request, _credit) = only(bench.batch().await);
    assert_eq!(health(&bench, Version::Http2).await.status, 200);
    bench.stop.cancel();
    eventually("it says that it drains", async || {
        let answer = health(&bench, Version::Http1).await;
        answer.status == 503 && answer.text().starts_with("it drains: ")
    })
    .await;
}

#[tokio::test]
async fn a_saved_topology_is_known_from_the_start() {
    let bench = Bench::start(spec()).await;
    assert_eq!(health(&bench, Version::Http1).await.status, 200);
    // Other methods are not for this page.
    let mut client = bench.client(Version::Http1).await;
    let refused = client.request("POST", "/healthz", body("x")).await;
    assert_eq!(
        (refused.status.as_u16(), refused.header("allow")),
        (405, Some("GET,HEAD"))
    );
}

#[tokio::test]
async fn a_pipelines_route_has_its_requests_where_the_health_page_is() {
    let mut spec = spec();
    spec.routes[0].path = "/healthz".into();
    let bench = Bench::start(spec).await;
    for version in BOTH {
        assert_eq!(health(&bench, version).await.text(), "ok\n");
        let mut client = bench.client(version).await;
        let (result, ()) = tokio::join!(client.request("POST", "/healthz", body("{}")), async {
            let (request, _credit) = only(bench.batch().await);
            answer(request, ErrorCode::Ok, "result");
        });
        assert_eq!(result.text(), "result", "{version:?}");
    }
}

async fn health(bench: &Bench, version: Version) -> Answer {
    let mut client = bench.client(version).await;
    client.request("GET", "/healthz", body("")).await
}

#[tokio::test]
async fn pages_are_only_read() {
    let bench = Bench::start(spec()).await;
    let mut client = bench.client(Version::Http1).await;
    for path in [DOCUMENT, "/openapi/swagger", SWAGGER] {
        let refused = client.request("POST", path, body("x")).await;
        assert_eq!(
            (refused.status.as_u16(), refused.header("allow")),
            (405, Some("GET,HEAD"))
        );
    }
    for path in ["/openapi", "/openapi/", "/openapi/swagger/x"] {
        assert_eq!(client.request("GET", path, body("")).await.status, 404, "{path}");
    }
}
