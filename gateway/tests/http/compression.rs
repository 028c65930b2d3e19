//! Compressed bodies: what is decoded, what is coded, and that neither happens unasked.

use std::io::{Read as _, Write as _};

use bytes::Bytes;
use mosec_gateway::Config;
use mosec_types::ErrorCode;
use mosec_types::topology::Phase;

use crate::bench::{Bench, ONE, answer, deployment, eventually, key, only, spec, topology};
use crate::client::{Answer, BOTH, Version, body};

async fn bench(compression: bool) -> Bench {
    let config = Config {
        compression,
        ..Default::default()
    };
    let mut spec = spec();
    spec.stages[1].streaming = true;
    spec.routes[1].stages.truncate(1);
    let bench = Bench::with_config(config, topology(1, vec![deployment(1, spec, Phase::Serving)])).await;
    eventually("the stage is there", async || {
        bench.registry.dispatcher(key(1, 1)).is_some()
    })
    .await;
    bench.grant(key(1, 0), ONE);
    bench.grant(key(1, 1), ONE);
    bench
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

fn zstd(body: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(body, 3).unwrap()
}

fn decoded(answer: &Answer) -> String {
    let mut text = String::new();
    match answer.header("content-encoding") {
        Some("gzip") => {
            flate2::read::GzDecoder::new(&answer.body[..])
                .read_to_string(&mut text)
                .unwrap();
        }
        Some("zstd") => {
            text = String::from_utf8(zstd::stream::decode_all(&answer.body[..]).unwrap()).unwrap();
        }
        None => text.push_str(answer.text()),
        Some(other) => panic!("unknown coding {other}"),
    }
    text
}

/// One request to `path`, answered with `result`; what the worker saw, and the answer.
async fn exchange(
    bench: &Bench,
    version: Version,
    path: &str,
    headers: &[(&str, &str)],
    sent: impl Into<Bytes>,
    result: &str,
) -> (Vec<u8>, Answer) {
    let mut client = bench.client(version).await;
    let (answered, seen) = tokio::join!(client.send("POST", path, headers, body(sent)), async {
        let (mut request, _credit) = only(bench.batch().await);
        let seen = request.payload.to_bytes().to_vec();
        if path == "/text" {
            let event = mosec_dispatch::Payload::Bytes(result.to_owned().into());
            request.event(event, tokio::time::Instant::now());
            answer(request, ErrorCode::Ok, "");
        } else {
            answer(request, ErrorCode::Ok, result);
        }
        seen
    });
    (seen, answered)
}

#[tokio::test]
async fn requests_are_decoded_and_answers_coded() {
    let bench = bench(true).await;
    let text = "some text that repeats, ".repeat(40);
    let long = "some text that repeats, ".repeat(2000);
    for version in BOTH {
        for (coding, coded) in [("gzip", gzip(text.as_bytes())), ("zstd", zstd(text.as_bytes()))] {
            for result in [&text, &long] {
                let headers = [("content-encoding", coding), ("accept-encoding", coding)];
                let (seen, answered) =
                    exchange(&bench, version, "/inference", &headers, coded.clone(), result).await;
                assert_eq!(seen, text.as_bytes(), "{version:?} {coding}");
                assert_eq!(answered.header("content-encoding"), Some(coding));
                assert_eq!(answered.header("vary"), Some("accept-encoding"));
                assert!(answered.body.len() < result.len() / 2);
                assert_eq!(&decoded(&answered), result);
            }
        }
    }
}

#[tokio::test]
async fn what_gains_nothing_is_not_coded() {
    let bench = bench(true).await;
    let text = "some text that repeats, ".repeat(40);
    let both = [("accept-encoding", "gzip, zstd")];
    let post =
        |path: &'static str, result: &'static str| exchange(&bench, Version::Http1, path, &both, "x", result);

    let (_, short) = post("/inference", "thirty-one bytes are left alone").await;
    assert_eq!(
        (short.header("content-encoding"), short.header("vary")),
        (None, None)
    );
    let (_, enough) = post("/inference", "thirty-two bytes can be shortened").await;
    assert_eq!(enough.header("content-encoding"), Some("zstd"));
    let (_, stream) = post("/text", "a stream of events is sent as it comes, however long").await;
    assert_eq!(
        (stream.header("content-encoding"), stream.header("vary")),
        (None, None)
    );
    let (_, unasked) = exchange(&bench, Version::Http1, "/inference", &[], "x", &text).await;
    assert_eq!(
        (unasked.header("content-encoding"), unasked.header("vary")),
        (None, Some("accept-encoding"))
    );
    assert_eq!(unasked.text(), text);
}

#[tokio::test]
async fn what_cannot_be_decoded_is_refused() {
    let bench = bench(true).await;
    let mut client = bench.client(Version::Http1).await;
    let fits = gzip(&[b'x'; 1024]);
    let (seen, _) = exchange(
        &bench,
        Version::Http1,
        "/inference",
        &[("content-encoding", "gzip")],
        fits,
        "",
    )
    .await;
    assert_eq!(seen.len(), 1024);
    for (coding, sent, status, text) in [
        // The limit is for what comes out.
        ("gzip", gzip(&[b'x'; 1025]), 413, "request body is too large"),
        (
            "zstd",
            zstd(&vec![b'x'; 1 << 20]),
            413,
            "request body is too large",
        ),
        ("gzip", b"no gzip".to_vec(), 400, "request body could not be read"),
        (
            "zstd",
            zstd(b"cut off")[..9].to_vec(),
            400,
            "request body could not be read",
        ),
        ("br", b"{}".to_vec(), 415, ""),
        ("gzip, zstd", b"{}".to_vec(), 415, ""),
    ] {
        let refused = client
            .send("POST", "/inference", &[("content-encoding", coding)], body(sent))
            .await;
        assert_eq!(
            (refused.status.as_u16(), refused.text()),
            (status, text),
            "{coding}"
        );
        let known = (status == 415).then_some("zstd,gzip");
        assert_eq!(refused.header("accept-encoding"), known);
        assert_eq!(refused.header("server").is_some(), status != 415);
    }
    let empty = gzip(b"");
    let nothing = client
        .send("POST", "/inference", &[("content-encoding", "gzip")], body(empty))
        .await;
    assert_eq!(
        (nothing.status.as_u16(), nothing.text()),
        (200, "no data provided")
    );
    assert!(!bench.has_batch());
}

#[tokio::test]
async fn unasked_everything_goes_through_as_it_is() {
    let bench = bench(false).await;
    let coded = gzip(b"{}");
    let headers = [("content-encoding", "gzip"), ("accept-encoding", "gzip")];
    let text = "some text that repeats, ".repeat(40);
    let (seen, answered) = exchange(
        &bench,
        Version::Http1,
        "/inference",
        &headers,
        coded.clone(),
        &text,
    )
    .await;
    assert_eq!(seen, coded);
    assert_eq!(
        (answered.header("content-encoding"), answered.header("vary")),
        (None, None)
    );
    assert_eq!(answered.text(), text);
}

#[tokio::test]
async fn the_gateways_own_pages_are_coded_too() {
    let bench = bench(true).await;
    let mut client = bench.client(Version::Http1).await;
    let gzip = [("accept-encoding", "gzip")];
    let metrics = client.send("GET", "/metrics", &gzip, body("")).await;
    assert_eq!(metrics.header("content-encoding"), Some("gzip"));
    assert!(decoded(&metrics).contains("mosec_service_remaining_task 0"));
    let home = client.send("GET", "/", &gzip, body("")).await;
    assert_eq!(
        (home.header("content-encoding"), home.text()),
        (None, "MOSEC service")
    );
}
