//! What a gateway does not put up with: idle connections, slow and broken bodies, more of anything than it has room for.

use std::time::Duration;

use bytes::Bytes;
use mosec_gateway::Config;
use mosec_types::topology::{Deployment, Phase};
use mosec_types::{ErrorCode, PipelineSpec};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::bench::{Bench, ONE, answer, deployment, eventually, key, only, spec, text_of, topology, within};
use crate::client::{BOTH, Version, body};
use crate::raw::{open, rest, until};

const SHORT: Duration = Duration::from_millis(50);

async fn bench_with(config: Config, spec: PipelineSpec) -> Bench {
    let config = Config {
        replica_grace: SHORT,
        ..config
    };
    let bench = Bench::with_config(config, topology(1, vec![deployment(1, spec, Phase::Serving)])).await;
    eventually("the stage is there", async || {
        bench.registry.dispatcher(key(1, 0)).is_some()
    })
    .await;
    bench.grant(key(1, 0), ONE);
    bench
}

/// A queue of one that is full, and the request that runs.
async fn full(bench: &Bench) -> (mosec_dispatch::Request, mosec_dispatch::Credit) {
    drop(bench.post(Version::Http1, "1"));
    let running = only(bench.batch().await);
    drop(bench.post(Version::Http1, "2"));
    let dispatcher = bench.registry.dispatcher(key(1, 0)).unwrap();
    eventually("the queue is full", async || dispatcher.queued() == 1).await;
    running
}

fn queue_of_one() -> PipelineSpec {
    PipelineSpec {
        capacity: 1,
        max_request_bytes: 1 << 20,
        ..spec()
    }
}

#[tokio::test]
async fn a_connection_without_a_request_is_closed() {
    let config = Config {
        head_timeout: SHORT,
        ..Default::default()
    };
    let bench = bench_with(config, spec()).await;
    for first in [
        "",
        // Undecided between the versions, amid a head, and HTTP/2 without a request.
        "PRI * HT",
        "POST /inference HTTP/1.1\r\nhos",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    ] {
        let mut stream = open(&bench, first.as_bytes()).await;
        let answer = rest(&mut stream).await;
        assert!(!answer.contains("200 OK"), "{first:?}: {answer}");
    }
}

#[tokio::test]
async fn a_connection_that_is_idle_is_closed_and_one_in_use_is_not() {
    let config = Config {
        idle_timeout: SHORT * 4,
        ..Default::default()
    };
    let bench = bench_with(config, spec()).await;
    for version in BOTH {
        let mut client = bench.client(version).await;
        let (result, ()) = tokio::join!(client.request("POST", "/inference", body("1")), async {
            let (request, _credit) = only(bench.batch().await);
            tokio::time::sleep(SHORT * 8).await;
            answer(request, ErrorCode::Ok, "late");
        });
        assert_eq!(result.text(), "late", "{version:?}");
        let end = format!("the connection's end, {version:?}");
        within(&end, client.closed()).await;
    }
}

#[tokio::test]
async fn more_connections_than_allowed_are_told_so() {
    let config = Config {
        max_connections: 2,
        ..Default::default()
    };
    let bench = bench_with(config, spec()).await;
    let mut first = bench.client(Version::Http1).await;
    let mut second = bench.client(Version::Http2).await;
    for client in [&mut first, &mut second] {
        assert_eq!(client.request("GET", "/", body("")).await.status, 200);
    }
    let mut third = open(&bench, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let refused = rest(&mut third).await;
    assert!(
        refused.starts_with("HTTP/1.1 503 Service Unavailable\r\n"),
        "{refused}"
    );
    assert!(
        refused.contains("\r\nretry-after: 1\r\nconnection: close\r\n"),
        "{refused}"
    );
    assert!(refused.ends_with("\r\n\r\ntoo many connections"), "{refused}");

    drop(first);
    eventually("there is room again", async || {
        let mut stream = open(&bench, b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        rest(&mut stream).await.starts_with("HTTP/1.1 200 OK\r\n")
    })
    .await;
    let metrics = second.request("GET", "/metrics", body("")).await;
    let line = |name: &str| {
        let found = metrics
            .text()
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        found.unwrap().parse::<u32>().unwrap()
    };
    assert_eq!(line("mosec_gateway_connections"), 1);
    assert!(line("mosec_gateway_connections_refused_total") >= 1);
}

#[tokio::test]
async fn a_head_has_a_bound() {
    let bench = bench_with(Config::default(), spec()).await;
    let head = format!("GET / HTTP/1.1\r\nhost: x\r\nx-long: {}", "x".repeat(65 * 1024));
    let mut stream = open(&bench, head.as_bytes()).await;
    let answer = rest(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
}

#[tokio::test]
async fn what_is_refused_anyway_is_refused_before_its_body() {
    let bench = bench_with(Config::default(), queue_of_one()).await;
    let _running = full(&bench).await;
    // A client that asks first sends nothing.
    let mut asking = open(
        &bench,
        b"POST /inference HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 9000\r\n\r\n",
    )
    .await;
    let refused = until(&mut asking, "task queue is full").await;
    assert!(
        refused.starts_with("HTTP/1.1 429 Too Many Requests\r\n"),
        "{refused}"
    );

    // One that has begun goes on, and may use its connection again.
    let mut begun = open(
        &bench,
        b"POST /inference HTTP/1.1\r\nhost: x\r\ncontent-length: 9000\r\n\r\n123",
    )
    .await;
    eventually("it is refused", async || refusals(&bench).await == 2.0).await;
    begun.write_all(&[b'x'; 8997]).await.unwrap();
    let refused = until(&mut begun, "task queue is full").await;
    assert!(refused.starts_with("HTTP/1.1 429 "), "{refused}");
    begun
        .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    until(&mut begun, "MOSEC service").await;
}

async fn refusals(bench: &Bench) -> f64 {
    let name = "mosec_dispatch_refused_total{pipeline=\"echo\",reason=\"queue_full\",stage=\"Echo_1\"}";
    bench.series(name).await
}

#[tokio::test]
async fn a_full_queue_does_not_change_what_comes_before_it() {
    let bench = bench_with(Config::default(), queue_of_one()).await;
    let _running = full(&bench).await;
    for (head, expected) in [
        ("content-length: 0\r\n\r\n", "no data provided"),
        ("transfer-encoding: chunked\r\n\r\n0\r\n\r\n", "no data provided"),
        (
            "content-length: 1048577\r\nexpect: 100-continue\r\n\r\n",
            "request body is too large",
        ),
    ] {
        let request = format!("POST /inference HTTP/1.1\r\nhost: x\r\n{head}");
        let mut stream = open(&bench, request.as_bytes()).await;
        let answer = until(&mut stream, expected).await;
        assert!(!answer.contains("100 Continue"), "{answer}");
    }
    // An empty body that is long in coming.
    let mut slow = open(
        &bench,
        b"POST /inference HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n",
    )
    .await;
    eventually("it is in flight", async || bench.in_flight().await == 3.0).await;
    slow.write_all(b"0\r\n\r\n").await.unwrap();
    until(&mut slow, "no data provided").await;
}

#[tokio::test]
async fn a_client_that_asks_is_told_to_go_on() {
    let bench = bench_with(Config::default(), spec()).await;
    let mut asking = open(
        &bench,
        b"POST /inference HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n",
    )
    .await;
    until(&mut asking, "HTTP/1.1 100 Continue\r\n\r\n").await;
    asking.write_all(b"abc").await.unwrap();
    let (request, _credit) = only(bench.batch().await);
    assert_eq!(text_of(&request), "abc");
    answer(request, ErrorCode::Ok, "done");
    until(&mut asking, "done").await;
}

#[tokio::test]
async fn a_large_body_is_refused_where_its_client_reads_it() {
    let bench = bench_with(Config::default(), spec()).await;
    for declared in [true, false] {
        let mut stream = TcpStream::connect(bench.address).await.unwrap();
        let head = if declared {
            format!("content-length: {}\r\n\r\n", 4 << 20)
        } else {
            format!("transfer-encoding: chunked\r\n\r\n{:x}\r\n", 4 << 20)
        };
        let head = format!("POST /inference HTTP/1.1\r\nhost: x\r\n{head}");
        stream.write_all(head.as_bytes()).await.unwrap();
        // As many clients do: all is sent before anything is read.
        stream.write_all(&vec![b'x'; 4 << 20]).await.unwrap();
        if !declared {
            stream.write_all(b"\r\n0\r\n\r\n").await.unwrap();
        }
        let answer = until(&mut stream, "request body is too large").await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    }
}

#[tokio::test]
async fn a_broken_body_is_not_a_large_one() {
    let bench = bench_with(Config::default(), spec()).await;
    let mut broken = open(
        &bench,
        b"POST /inference HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\nZZ\r\n",
    )
    .await;
    let answer = rest(&mut broken).await;
    assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
    assert!(
        answer.ends_with("\r\n\r\nrequest body could not be read"),
        "{answer}"
    );
    assert_eq!(
        bench
            .series("mosec_service_throughput_total{code=\"400\",endpoint=\"/inference\"}")
            .await,
        1.0
    );
}

#[tokio::test]
async fn a_body_that_stands_still_is_given_up() {
    let config = Config {
        body_idle_timeout: SHORT,
        ..Default::default()
    };
    let bench = bench_with(config, spec()).await;
    let mut stalled = open(
        &bench,
        b"POST /inference HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n123",
    )
    .await;
    let answer = rest(&mut stalled).await;
    assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
}

#[tokio::test]
async fn bodies_that_find_no_memory_are_refused() {
    let config = Config {
        max_body_bytes: 4096,
        body_memory_wait: SHORT,
        ..Default::default()
    };
    let limit = PipelineSpec {
        max_request_bytes: 1 << 20,
        ..spec()
    };
    let bench = bench_with(config, limit).await;
    for version in BOTH {
        // Larger than all the memory: it has it alone, until it is answered.
        let mut client = bench.client(version).await;
        let large = Bytes::from(vec![b'x'; 100_000]);
        let (result, ()) = tokio::join!(client.request("POST", "/inference", body(large)), async {
            let (request, _credit) = only(bench.batch().await);
            assert_eq!(request.payload.len(), 100_000);
            assert_eq!(bench.series("mosec_gateway_body_bytes").await, 4096.0);
            let refused = bench.post(version, "small").await.unwrap();
            assert_eq!(
                (refused.status.as_u16(), refused.text()),
                (503, "too many request bodies in memory")
            );
            assert_eq!(refused.header("retry-after"), Some("1"));
            answer(request, ErrorCode::Ok, "large");
        });
        assert_eq!(result.text(), "large");
        eventually("the memory is free", async || {
            bench.series("mosec_gateway_body_bytes").await == 0.0
        })
        .await;
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_its_answer_is_dropped() {
    let config = Config {
        write_timeout: Duration::from_millis(500),
        ..Default::default()
    };
    let bench = bench_with(config, spec()).await;
    let mut deaf = open(
        &bench,
        b"POST /inference HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\n1",
    )
    .await;
    let (request, _credit) = only(bench.batch().await);
    answer(request, ErrorCode::Ok, &"x".repeat(32 << 20));
    eventually("the connection is gone", async || {
        // The one that asks.
        bench.series("mosec_gateway_connections").await == 1.0
    })
    .await;
    assert!(rest(&mut deaf).await.len() < 32 << 20);
}

/// A client whose body has come by half when its revision ends, and `deployment` is all that there is then.
async fn amid_its_body(bench: &Bench, deployment: Deployment) -> TcpStream {
    let slow = open(
        bench,
        b"POST /inference HTTP/1.1\r\nhost: x\r\ncontent-length: 6\r\n\r\n123",
    )
    .await;
    eventually("it is in flight", async || bench.in_flight().await == 1.0).await;
    bench.topology.send(topology(2, vec![deployment])).unwrap();
    eventually("the old revision is gone", async || {
        bench.registry.dispatcher(key(1, 0)).is_none()
    })
    .await;
    slow
}

#[tokio::test]
async fn a_request_whose_revision_ends_while_its_body_comes_goes_to_the_next() {
    let bench = bench_with(Config::default(), spec()).await;
    let mut slow = amid_its_body(&bench, deployment(2, spec(), Phase::Serving)).await;
    bench.grant(key(2, 0), ONE);
    slow.write_all(b"456").await.unwrap();
    let batch = bench.batch().await;
    assert_eq!(batch.stage, key(2, 0));
    let (request, _credit) = only(batch);
    assert_eq!(text_of(&request), "123456");
    answer(request, ErrorCode::Ok, "new");
    until(&mut slow, "new").await;
}

#[tokio::test]
async fn a_request_whose_revision_ends_without_a_successor_is_counted_as_refused() {
    let bench = bench_with(Config::default(), spec()).await;
    // It is over, but not forgotten yet.
    let mut slow = amid_its_body(&bench, deployment(1, spec(), Phase::Retiring)).await;
    slow.write_all(b"456").await.unwrap();
    let answer = until(&mut slow, "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    let labels = "pipeline=\"echo\",reason=\"unknown_route\"";
    let refused = format!("mosec_gateway_refused_total{{{labels}}}");
    assert_eq!(bench.series(&refused).await, 1.0);
}
