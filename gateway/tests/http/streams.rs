//! Streams of events: what clients read, byte for byte, and what becomes of slow ones and those that leave.

use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mosec_dispatch::{Payload, Request, Window};
use mosec_gateway::Config;
use mosec_types::topology::Phase;
use mosec_types::{ErrorCode, PipelineSpec};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::bench::{Bench, ONE, answer, deployment, eventually, key, only, spec, topology, within};
use crate::client::{BOTH, Version, body};
use crate::raw::{open, rest, until};

const POST: &[u8] = b"POST /inference HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}";

fn streaming() -> PipelineSpec {
    let mut spec = spec();
    spec.stages[0].streaming = true;
    spec.capacity = 1;
    spec
}

/// How many requests have had this end.
async fn requests(bench: &Bench, code: ErrorCode) -> f64 {
    let status = code.http_status();
    let labels = format!("code=\"{status}\",pipeline=\"echo\",revision=\"1\",route=\"/inference\"");
    let series = format!("mosec_gateway_requests_total{{{labels}}}");
    bench.series(&series).await
}

fn event(request: &mut Request, text: &str) -> bool {
    let payload = Payload::Bytes(text.to_owned().into());
    request.event(payload, Instant::now())
}

#[tokio::test]
async fn events_come_as_they_are_sent() {
    let bench = Bench::start(streaming()).await;
    let mut client = open(&bench, POST).await;
    let (mut request, _credit) = only(bench.batch().await);
    // Before the first event: the client knows that it is being served.
    let head = until(&mut client, "\r\n\r\n").await.to_lowercase();
    let mut lines: Vec<_> = head
        .trim_end()
        .lines()
        .filter(|line| !line.starts_with("date: "))
        .collect();
    lines[1..].sort_unstable();
    assert_eq!(
        lines,
        [
            "http/1.1 200 ok",
            "cache-control: no-cache",
            "content-type: text/event-stream",
            "transfer-encoding: chunked",
        ]
    );
    assert!(event(&mut request, "a"));
    assert_eq!(
        until(&mut client, "data: a\n\n\r\n").await,
        "9\r\ndata: a\n\n\r\n"
    );
    assert!(event(&mut request, "b\nc"));
    until(&mut client, "data: b\ndata: c\n\n\r\n").await;
    assert_eq!(bench.in_flight().await, 1.0);
    answer(request, ErrorCode::Ok, "");
    assert_eq!(until(&mut client, "\r\n\r\n").await, "0\r\n\r\n");
    eventually("it is counted", async || {
        bench
            .series("mosec_service_throughput_total{code=\"200\",endpoint=\"/inference\"}")
            .await
            == 1.0
    })
    .await;
    assert_eq!(bench.in_flight().await, 0.0);
    assert_eq!(bench.series("mosec_gateway_body_bytes").await, 0.0);
}

#[tokio::test]
async fn an_error_is_an_event() {
    let bench = Bench::start(streaming()).await;
    for version in BOTH {
        let mut client = bench.client(version).await;
        let (result, ()) = tokio::join!(client.request("POST", "/inference", body("{}")), async {
            let (mut request, _credit) = only(bench.batch().await);
            event(&mut request, "a");
            answer(
                request,
                ErrorCode::Validation,
                "request validation error: late - line",
            );
        });
        assert_eq!(
            (
                result.status.as_u16(),
                result.header("content-type"),
                result.header("server")
            ),
            (200, Some("text/event-stream"), None)
        );
        assert_eq!(
            result.text(),
            "data: a\n\nevent: error\ndata: SSE inference error: 422: Unprocessable Content: request validation \
             error: late - line\n\n",
            "{version:?}"
        );
    }
}

#[tokio::test]
async fn a_stream_that_breaks_is_held_against_its_revision() {
    let bench = Bench::start(streaming()).await;
    for (code, told) in [
        (ErrorCode::Ok, (1, 0)),
        (ErrorCode::WorkerCrashed, (2, 1)),
        (ErrorCode::Validation, (3, 1)), // the client's fault
    ] {
        let before = requests(&bench, code).await;
        let mut client = open(&bench, POST).await;
        let (mut request, _credit) = only(bench.batch().await);
        assert!(event(&mut request, "a"));
        until(&mut client, "data: a\n\n\r\n").await;
        answer(request, code, "");
        until(&mut client, "0\r\n\r\n").await;
        eventually("it is counted", async || {
            matches!((bench.traffic)()[..], [(_, counts)] if (counts.requests, counts.errors) == told)
                && requests(&bench, code).await == before + 1.0
        })
        .await;
        // For MOSEC it was a success, as its head said so.
        let as_mosec = "mosec_service_throughput_total{code=\"200\",endpoint=\"/inference\"}";
        assert_eq!(bench.series(as_mosec).await, told.0 as f64, "{code}");
        let durations = "mosec_service_process_duration_second_count{connection=\"total\",stage=\"total\"}";
        assert_eq!(bench.series(durations).await, told.0 as f64, "{code}");
    }
}

#[tokio::test]
async fn a_stream_is_as_slow_as_its_first_event() {
    // Far longer than an event takes from here to there on any machine.
    let bound = Duration::from_secs(60);
    let mut spec = streaming();
    spec.timeout = 10 * bound;
    spec.rollout.bounds.max_p99 = Some(bound);
    let bench = Bench::start(spec).await;
    for (is_early, told) in [(true, (1, 0)), (false, (2, 1))] {
        let mut client = open(&bench, POST).await;
        let (mut request, _credit) = only(bench.batch().await);
        if is_early {
            assert!(event(&mut request, "a"));
        }
        // The clock is moved: nobody waits so long.
        tokio::time::pause();
        tokio::time::advance(bound).await;
        tokio::time::resume();
        assert!(event(&mut request, "b"));
        answer(request, ErrorCode::Ok, "");
        until(&mut client, "0\r\n\r\n").await;
        eventually(
            "it is counted",
            async || matches!((bench.traffic)()[..], [(_, counts)] if (counts.requests, counts.slow) == told),
        )
        .await;
    }
}

#[tokio::test]
async fn what_comes_before_a_stream_is_no_event() {
    let bench = Bench::start(streaming()).await;
    let mut client = bench.client(Version::Http1).await;
    let bytes = Some("application/octet-stream");

    let empty = client.request("POST", "/inference", body("")).await;
    assert_eq!((empty.status.as_u16(), empty.text()), (200, "no data provided"));
    assert_eq!(
        (empty.header("content-type"), empty.header("server")),
        (bytes, None)
    );

    let large = client.request("POST", "/inference", body(vec![b'x'; 2000])).await;
    assert_eq!(
        (large.status.as_u16(), large.text()),
        (413, "request body is too large")
    );
    assert_eq!(large.header("content-type"), None);
    assert!(large.header("server").is_some());

    let _running = bench.post(Version::Http1, "1");
    let _batch = bench.batch().await;
    let _waiting = bench.post(Version::Http1, "2");
    let dispatcher = bench.registry.dispatcher(key(1, 0)).unwrap();
    eventually("the queue is full", async || dispatcher.queued() == 1).await;
    let full = client.request("POST", "/inference", body("{}")).await;
    assert_eq!(
        (full.status.as_u16(), full.text()),
        (429, "too many request: task queue is full")
    );
    assert_eq!(
        (full.header("content-type"), full.header("server")),
        (bytes, None)
    );

    bench.stop.cancel();
    eventually("the gateway drains", async || {
        let draining = bench
            .client(Version::Http1)
            .await
            .request("POST", "/inference", body("{}"))
            .await;
        draining.status == 503
            && draining.text() == "gracefully shutting down"
            && draining.header("content-type") == bytes
            && draining.header("server").is_none()
    })
    .await;
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_work_and_is_counted() {
    let bench = Bench::start(streaming()).await;
    for (before, version) in BOTH.into_iter().enumerate() {
        let client = bench.post(version, "{}");
        let (mut request, _credit) = only(bench.batch().await);
        assert!(event(&mut request, "a"));
        client.abort();
        eventually("it is unwanted", async || !request.reply.is_wanted()).await;
        assert!(!event(&mut request, "b"), "{version:?}");
        eventually("it is not in flight", async || bench.in_flight().await == 0.0).await;
        eventually("it is counted", async || {
            requests(&bench, ErrorCode::Cancelled).await == (before + 1) as f64
        })
        .await;
        drop(request);
    }
    assert_eq!(requests(&bench, ErrorCode::Ok).await, 0.0);
}

#[tokio::test]
async fn a_client_that_does_not_read_is_given_up_and_told() {
    let bench = Bench::start(streaming()).await;
    let mut client = open(&bench, POST).await;
    let (mut request, _credit) = only(bench.batch().await);
    let text = "x".repeat(1 << 18);
    let mut sent = 0;
    while event(&mut request, &text) {
        sent += 1;
        assert!(sent < 1000, "no bound on what is kept for a client");
        tokio::task::yield_now().await;
    }
    assert!(!request.reply.is_wanted());
    drop(request);
    let mut read = String::new();
    while !read.ends_with("reads too slowly\n\n\r\n0\r\n\r\n") {
        let mut piece = vec![0; 1 << 16];
        let count = client.read(&mut piece).await.unwrap();
        assert!(count > 0, "the stream has an end");
        read.push_str(str::from_utf8(&piece[..count]).unwrap());
    }
    assert!(read.contains("event: error\ndata: SSE inference error: 408: Request Timeout: "));
    // The connection lives on.
    use tokio::io::AsyncWriteExt as _;
    client
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    assert!(rest(&mut client).await.ends_with("MOSEC service"));
}

#[tokio::test]
async fn the_timeout_limits_pauses_and_not_the_stream() {
    let bench = Bench::start(PipelineSpec {
        timeout: Duration::from_millis(400),
        ..streaming()
    })
    .await;
    let client = bench.post(Version::Http1, "{}");
    let (mut request, _credit) = only(bench.batch().await);
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(event(&mut request, "a"));
    }
    // Now nothing, until the stream ends by itself.
    let answer = client.await.unwrap();
    assert!(!request.reply.is_wanted());
    let expected = "data: a\n\n".repeat(8)
        + "event: error\ndata: SSE inference error: 408: Request Timeout: inference timeout\n\n";
    assert_eq!(answer.text(), expected);
}

#[tokio::test]
async fn a_drain_waits_for_streams() {
    let bench = Bench::start(streaming()).await;
    let client = bench.post(Version::Http2, "{}");
    let (mut request, _credit) = only(bench.batch().await);
    bench.stop.cancel();
    eventually("the gateway drains", async || {
        bench
            .client(Version::Http1)
            .await
            .request("GET", "/", body(""))
            .await
            .status
            == 503
    })
    .await;
    assert!(event(&mut request, "last"));
    answer(request, ErrorCode::Ok, "");
    assert_eq!(client.await.unwrap().text(), "data: last\n\n");
    crate::bench::within("end of the gateway", bench.running)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_stream_of_http2_that_is_not_read_is_reset_alone() {
    let config = Config {
        write_timeout: Duration::from_millis(300),
        ..Default::default()
    };
    let mut spec = streaming();
    spec.capacity = 2;
    let bench = Bench::with_config(config, topology(1, vec![deployment(1, spec, Phase::Serving)])).await;
    bench.grant(key(1, 0), Window { limit: 2, ..ONE });
    let io = TokioIo::new(TcpStream::connect(bench.address).await.unwrap());
    let (mut sender, connection) = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(10)
        .handshake(io)
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let post = || {
        let post = hyper::Request::post("http://x/inference");
        post.body(body("{}")).unwrap()
    };
    let (unread, (mut first, _first)) =
        tokio::join!(sender.send_request(post()), async { only(bench.batch().await) });
    let (read, (mut second, _second)) =
        tokio::join!(sender.send_request(post()), async { only(bench.batch().await) });
    let (unread, read) = (unread.unwrap(), read.unwrap().into_body());
    within("nobody wants the one that is not read", async {
        while event(&mut first, "more than the client's window") {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    drop(first);
    eventually("its place is free", async || bench.in_flight().await == 1.0).await;
    let reset = unread.into_body().collect().await;
    assert!(reset.is_err());
    // The other one goes on, idle as it was.
    assert!(event(&mut second, "a"));
    answer(second, ErrorCode::Ok, "");
    let read = read.collect().await.unwrap().to_bytes();
    assert!(read.ends_with(b"data: a\n\n"), "{read:?}");
    connection.abort();
}

#[tokio::test]
async fn a_whole_answer_over_http2_that_is_not_read_is_given_up_and_one_that_is_read_slowly_is_not() {
    let config = Config {
        write_timeout: Duration::from_millis(500),
        ..Default::default()
    };
    let bench = Bench::with_config(config, topology(1, vec![deployment(1, spec(), Phase::Serving)])).await;
    bench.grant(key(1, 0), Window { limit: 2, ..ONE });
    let io = TokioIo::new(TcpStream::connect(bench.address).await.unwrap());
    let window = 100 << 10;
    let (mut sender, connection) = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(window)
        .initial_connection_window_size(1 << 20)
        .handshake(io)
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let mut answers = Vec::new();
    // Of the unread one even the last piece has to be given up; the other is three times as large as its window.
    for bytes in [window as usize + 1, 3 * window as usize] {
        let post = hyper::Request::post("http://x/inference");
        let sent = sender.send_request(post.body(body("{}")).unwrap());
        let (response, ()) = tokio::join!(sent, async {
            let (request, _credit) = only(bench.batch().await);
            answer(request, ErrorCode::Ok, &"x".repeat(bytes));
        });
        answers.push(response.unwrap().into_body());
    }
    let mut slow = answers.pop().unwrap();
    let mut read = 0;
    while let Some(frame) = slow.frame().await {
        read += frame.unwrap().into_data().unwrap().len();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(read, 3 * window as usize);
    let unread = answers.pop().unwrap().collect().await;
    assert!(unread.is_err(), "it has been reset");
    connection.abort();
}
