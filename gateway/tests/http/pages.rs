//! The service's description, as a document and as a page.

use std::io::Read as _;

use mosec_types::PipelineSpec;

use crate::bench::{Bench, spec};
use crate::client::{BOTH, Version, body};

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
