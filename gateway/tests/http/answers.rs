//! What clients read: statuses, headers and bodies, the same over both versions on one port.

use std::time::Duration;

use bytes::Bytes;
use mosec_gateway::Config;
use mosec_types::ErrorCode;
use mosec_types::topology::Phase;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::bench::{Bench, ONE, answer, deployment, eventually, key, only, spec, text_of, topology, within};
use crate::client::{Answer, BOTH, body, chunks};

const SERVER: &str = concat!("mosec/", env!("CARGO_PKG_VERSION"));

/// An error of the service: plain text without a type, from a server that names itself.
fn assert_error(answer: &Answer, status: u16, text: &str) {
    assert_eq!((answer.status.as_u16(), answer.text()), (status, text));
    assert_eq!(answer.header("content-type"), None, "{text}");
    assert_eq!(answer.header("server"), Some(SERVER), "{text}");
    assert_eq!(
        answer.header("retry-after"),
        (status == 503).then_some("1"),
        "{text}"
    );
}

#[tokio::test]
async fn a_result_has_the_type_of_its_routes_last_stage() {
    let bench = Bench::start(spec()).await;
    for version in BOTH {
        for (path, stage, mime) in [
            ("/inference", 0, "application/json"),
            ("/text?ignored=1", 1, "text/plain"),
        ] {
            let mut client = bench.client(version).await;
            let (result, ()) = tokio::join!(client.request("POST", path, body("question")), async {
                let batch = bench.batch().await;
                assert_eq!(batch.stage, key(1, stage));
                let (request, _credit) = only(batch);
                assert_eq!(text_of(&request), "question");
                answer(request, ErrorCode::Ok, "result");
            });
            assert_eq!(
                (result.status.as_u16(), result.text()),
                (200, "result"),
                "{version:?}"
            );
            assert_eq!(result.header("content-type"), Some(mime));
            assert_eq!(result.header("server"), Some(SERVER));
            assert_eq!(result.header("retry-after"), None);
        }
    }
}

#[tokio::test]
async fn a_workers_error_has_its_status_and_text() {
    let bench = Bench::start(spec()).await;
    for version in BOTH {
        let mut client = bench.client(version).await;
        for (code, status, text) in [
            (ErrorCode::BadRequest, 400, "decoding error: decoding error"),
            (ErrorCode::Validation, 422, "request validation error: 'x'"),
            (ErrorCode::Worker, 500, "internal error: s-msg - line2"),
            (ErrorCode::Inference, 500, "inference internal error"),
            (
                ErrorCode::ForwardTimeout,
                408,
                "mosec timeout error: forward timeout after 0.5s",
            ),
            (
                ErrorCode::WorkerCrashed,
                500,
                "the worker process died while handling this request",
            ),
            (
                ErrorCode::ReplicaLost,
                503,
                "the replica was lost before it answered",
            ),
        ] {
            let (result, ()) = tokio::join!(client.request("POST", "/inference", body("{}")), async {
                let (request, _credit) = only(bench.batch().await);
                answer(request, code, text);
            });
            assert_error(&result, status, text);
        }
    }
}

#[tokio::test]
async fn a_request_that_the_target_drops_is_answered() {
    let bench = Bench::start(spec()).await;
    let answer = bench.post(BOTH[0], "{}");
    drop(bench.batch().await);
    assert_error(&answer.await.unwrap(), 500, "mosec unknown error");
}

#[tokio::test]
async fn the_gateways_own_pages() {
    let bench = Bench::start(spec()).await;
    for version in BOTH {
        let mut client = bench.client(version).await;
        for (path, mime) in [
            ("/", Some("text/plain; charset=utf-8")),
            ("/metrics", Some("text/plain; version=0.0.4; charset=utf-8")),
        ] {
            let page = client.request("GET", path, body("")).await;
            assert_eq!(
                (page.status.as_u16(), page.header("content-type")),
                (200, mime),
                "{version:?} {path}"
            );
            assert_eq!(page.header("server"), Some(SERVER));
            assert!(path == "/metrics" || page.text() == "MOSEC service");
            assert!(
                path == "/" || page.text().contains("\nmosec_service_remaining_task 0\n"),
                "{}",
                page.text()
            );

            let head = client.request("HEAD", path, body("")).await;
            assert_eq!(
                (head.status.as_u16(), head.text()),
                (200, ""),
                "{version:?} HEAD {path}"
            );
            let length = head.header("content-length").unwrap().parse::<usize>().unwrap();
            assert!(path == "/metrics" || length == page.body.len());
            assert_eq!(
                (head.header("server"), head.header("content-type")),
                (Some(SERVER), mime)
            );

            let other = client.request("POST", path, body("x")).await;
            assert_eq!((other.status.as_u16(), other.text()), (405, ""));
            assert_eq!(
                (other.header("allow"), other.header("server")),
                (Some("GET,HEAD"), None)
            );
        }
    }
}

#[tokio::test]
async fn the_routers_own_answers_are_empty_and_name_no_server() {
    let bench = Bench::start(spec()).await;
    for version in BOTH {
        let mut client = bench.client(version).await;
        for method in ["GET", "HEAD", "PUT", "DELETE"] {
            let wrong = client.request(method, "/inference", body("")).await;
            assert_eq!(
                (wrong.status.as_u16(), wrong.text()),
                (405, ""),
                "{version:?} {method}"
            );
            assert_eq!(
                (wrong.header("allow"), wrong.header("server")),
                (Some("POST"), None)
            );
        }
        for path in [
            "/inference/",
            "/inferenc",
            "/Inference",
            "//inference",
            "/metrics/",
            "/favicon.ico",
        ] {
            let unknown = client.request("POST", path, body("{}")).await;
            assert_eq!(
                (unknown.status.as_u16(), unknown.text()),
                (404, ""),
                "{version:?} {path}"
            );
            assert_eq!(
                (unknown.header("server"), unknown.header("content-type")),
                (None, None)
            );
        }
    }
    assert!(!bench.has_batch());
}

#[tokio::test]
async fn an_empty_body_is_answered_without_a_worker() {
    let bench = Bench::start(spec()).await;
    for version in BOTH {
        let mut client = bench.client(version).await;
        for empty in [body(""), chunks([])] {
            let answer = client.request("POST", "/inference", empty).await;
            assert_eq!(
                (answer.status.as_u16(), answer.text()),
                (200, "no data provided"),
                "{version:?}"
            );
            assert_eq!(
                (answer.header("content-type"), answer.header("server")),
                (None, Some(SERVER))
            );
        }
    }
    assert!(!bench.has_batch());
}

#[tokio::test]
async fn a_body_may_have_the_limits_size_and_not_a_byte_more() {
    let bench = Bench::start(spec()).await;
    let piece = Bytes::from(vec![b'x'; 512]);
    for version in BOTH {
        for fits in [body(vec![b'x'; 1024]), chunks([piece.clone(), piece.clone()])] {
            let mut client = bench.client(version).await;
            let (result, ()) = tokio::join!(client.request("POST", "/inference", fits), async {
                let (request, _credit) = only(bench.batch().await);
                assert_eq!(request.payload.len(), 1024);
                answer(request, ErrorCode::Ok, "");
            });
            assert_eq!((result.status.as_u16(), result.text()), (200, ""), "{version:?}");
        }
        let one_more = Bytes::from_static(b"x");
        for large in [
            body(vec![b'x'; 1025]),
            chunks([piece.clone(), piece.clone(), one_more]),
            body(vec![b'x'; 1 << 18]),
        ] {
            let answer = bench
                .client(version)
                .await
                .request("POST", "/inference", large)
                .await;
            assert_error(&answer, 413, "request body is too large");
        }
    }
    assert!(!bench.has_batch());
}

#[tokio::test]
async fn a_body_that_does_not_come_is_given_up() {
    let config = Config {
        body_timeout: Duration::from_millis(50),
        ..Default::default()
    };
    let bench = Bench::with_config(config, topology(1, vec![deployment(1, spec(), Phase::Serving)])).await;
    let mut stalled = TcpStream::connect(bench.address).await.unwrap();
    stalled
        .write_all(b"POST /inference HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n123")
        .await
        .unwrap();
    let mut answer = String::new();
    within("the connection's end", stalled.read_to_string(&mut answer))
        .await
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
    assert!(
        answer.ends_with("\r\n\r\nrequest body could not be read"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_client_that_leaves_amid_its_body_is_not_in_flight() {
    let bench = Bench::start(spec()).await;
    let mut leaving = TcpStream::connect(bench.address).await.unwrap();
    leaving
        .write_all(b"POST /inference HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n123")
        .await
        .unwrap();
    eventually("it is in flight", async || bench.in_flight().await == 1.0).await;
    drop(leaving);
    eventually("it is not", async || bench.in_flight().await == 0.0).await;
    assert!(!bench.has_batch());
}

#[tokio::test]
async fn routes_follow_the_topology() {
    let config = Config {
        replica_grace: Duration::from_millis(50),
        ..Default::default()
    };
    let starting = topology(1, vec![deployment(1, spec(), Phase::Starting)]);
    let bench = Bench::with_config(config, starting).await;
    let mut client = bench.client(BOTH[0]).await;
    assert_eq!(client.request("POST", "/inference", body("{}")).await.status, 404);

    bench
        .topology
        .send(topology(2, vec![deployment(1, spec(), Phase::Serving)]))
        .unwrap();
    eventually("the route is there", async || {
        bench.registry.dispatcher(key(1, 0)).is_some()
    })
    .await;
    bench.grant(key(1, 0), ONE);
    let (result, ()) = tokio::join!(client.request("POST", "/inference", body("{}")), async {
        let (request, _credit) = only(bench.batch().await);
        answer(request, ErrorCode::Ok, "1");
    });
    assert_eq!(result.text(), "1");

    let in_flight = bench.post(BOTH[0], "{}");
    let (request, _credit) = only(bench.batch().await);
    bench.topology.send(topology(3, Vec::new())).unwrap();
    eventually("the route is gone", async || {
        let mut client = bench.client(BOTH[1]).await;
        client.request("GET", "/inference", body("")).await.status == 404
    })
    .await;
    answer(request, ErrorCode::Ok, "late");
    assert_eq!(
        in_flight.await.unwrap().text(),
        "late",
        "what a revision has is finished"
    );
}
