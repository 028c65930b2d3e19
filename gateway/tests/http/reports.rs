//! What a gateway counts, and where it says the time went.

use std::time::Duration;

use mosec_dispatch::Window;
use mosec_types::traffic::Counts;
use mosec_types::{ErrorCode, PipelineSpec, Revision, Span, SpanKind, StageIndex};
use tokio::io::AsyncWriteExt as _;

use crate::bench::{Bench, answer, eventually, key, only, spec};
use crate::client::{BOTH, Version, body};
use crate::raw::{open, until};

#[tokio::test]
async fn requests_are_counted_by_what_they_were_answered() {
    let bench = Bench::start(PipelineSpec {
        capacity: 1,
        ..spec()
    })
    .await;
    let outcomes = [
        (ErrorCode::Ok, "200"),
        (ErrorCode::Ok, "200"),
        (ErrorCode::Validation, "422"),
        (ErrorCode::Inference, "500"),
    ];
    for (code, _) in outcomes {
        let client = bench.post(Version::Http1, "{}");
        let (request, _credit) = only(bench.batch().await);
        assert_eq!(bench.in_flight().await, 1.0);
        answer(request, code, "");
        client.await.unwrap();
    }
    let mut client = bench.client(Version::Http1).await;
    client.request("POST", "/inference", body("")).await;
    client.request("POST", "/unknown", body("{}")).await;
    client.request("GET", "/inference", body("")).await;
    assert_eq!(
        client
            .request("POST", "/inference", body(vec![0; 2048]))
            .await
            .status,
        413
    );

    let running = bench.post(Version::Http1, "{}");
    let (request, _credit) = only(bench.batch().await);
    let waiting = bench.post(Version::Http1, "{}");
    let dispatcher = bench.registry.dispatcher(key(1, 0)).unwrap();
    eventually("it waits", async || dispatcher.queued() == 1).await;
    assert_eq!(bench.post(Version::Http1, "{}").await.unwrap().status, 429);
    assert_eq!(bench.in_flight().await, 2.0);
    running.abort();
    waiting.abort();
    eventually("nobody is in flight", async || bench.in_flight().await == 0.0).await;
    drop(request);

    let mut total = 0.0;
    for (code, expected) in [
        ("200", 3.0),
        ("422", 1.0),
        ("500", 1.0),
        ("429", 1.0),
        ("413", 1.0),
        ("404", 0.0),
    ] {
        let name = format!("mosec_service_throughput_total{{code=\"{code}\",endpoint=\"/inference\"}}");
        let counted = bench.series(&name).await;
        assert_eq!(counted, expected, "{code}");
        total += counted;
    }
    assert_eq!(total, 7.0);
    let durations = "mosec_service_process_duration_second_count{connection=\"total\",stage=\"total\"}";
    assert_eq!(bench.series(durations).await, 2.0, "of results only");
    assert_eq!(
        bench
            .series("mosec_dispatch_refused_total{pipeline=\"echo\",reason=\"queue_full\",stage=\"Echo_1\"}")
            .await,
        1.0
    );
    let queued = "mosec_dispatch_queue_requests{pipeline=\"echo\",stage=\"Echo_1\"}";
    eventually("the queue is empty", async || bench.series(queued).await == 0.0).await;
}

/// Milliseconds by name, of `name;desc="...";dur=1.234, ...`.
fn durations(header: &str) -> Vec<(String, f64)> {
    let entries = header.split(", ").map(|entry| {
        let (name, rest) = entry.split_once(';').unwrap();
        let (_, duration) = rest.rsplit_once("dur=").unwrap();
        (name.to_owned(), duration.parse().unwrap())
    });
    entries.collect()
}

#[tokio::test]
async fn a_trace_adds_up() {
    let bench = Bench::start(spec()).await;
    for version in BOTH {
        let mut client = bench.client(version).await;
        let request = client.send("POST", "/text", &[("mosec-trace", "1")], body("{}"));
        let (result, ()) = tokio::join!(request, async {
            let (mut request, _credit) = only(bench.batch().await);
            assert!(request.traced);
            let worked = Duration::from_millis(3);
            tokio::time::sleep(worked * 2).await;
            for stage in [1, 2] {
                let micros = u32::try_from(worked.as_micros()).unwrap();
                request.spans.push(Span {
                    kind: SpanKind::Worker,
                    stage: StageIndex(stage),
                    micros,
                });
            }
            answer(request, ErrorCode::Ok, "result");
        });
        let header = result.header("server-timing").unwrap();
        assert!(
            header.contains("worker-2;desc=\"Decode_2\";dur=3.000, worker-3;desc=\"Write_3\""),
            "{header}"
        );
        let (total, parts) = durations(header)
            .split_first()
            .map(|(total, parts)| (total.clone(), parts.to_vec()))
            .unwrap();
        let names: Vec<_> = parts.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(total.0, "total");
        assert_eq!(names, ["gateway", "queue-2", "worker-2", "worker-3"]);
        assert!(total.1 >= 6.0, "{header}");
        let sum: f64 = parts.iter().map(|(_, duration)| duration).sum();
        assert!((sum - total.1).abs() < 0.0005, "{header}");
    }
}

#[tokio::test]
async fn a_client_that_does_not_ask_is_not_told() {
    let bench = Bench::start(spec()).await;
    let client = bench.post(Version::Http1, "{}");
    let (request, _credit) = only(bench.batch().await);
    answer(request, ErrorCode::Ok, "");
    assert_eq!(client.await.unwrap().header("server-timing"), None);
}

#[tokio::test]
async fn nobody_is_told_where_the_time_of_a_stream_went() {
    let mut streaming = spec();
    streaming.stages[0].streaming = true;
    let bench = Bench::start(streaming).await;
    let mut client = bench.client(Version::Http1).await;
    let asking = client.send("POST", "/inference", &[("mosec-trace", "1")], body("{}"));
    let (result, ()) = tokio::join!(asking, async {
        let (request, _credit) = only(bench.batch().await);
        assert!(!request.traced);
        assert!(request.spans.is_empty());
        answer(request, ErrorCode::Ok, "");
    });
    assert_eq!(
        (result.status.as_u16(), result.header("server-timing")),
        (200, None)
    );
}

#[tokio::test]
async fn a_refusal_is_told_whether_the_body_came_with_the_head_or_not() {
    let bench = Bench::start(spec()).await;
    bench.grant(key(1, 0), Window::default());
    eventually("its replicas are lost", async || {
        let dispatcher = bench.registry.dispatcher(key(1, 0));
        dispatcher.is_some_and(|stage| stage.refuse_early() == Some(ErrorCode::NoReplica))
    })
    .await;
    for (told, rest) in [
        (1, "content-length: 3\r\n\r\nabc"),
        (2, "content-length: 3\r\n\r\n"),
        (3, "expect: 100-continue\r\ncontent-length: 3\r\n\r\n"),
    ] {
        let request = format!("POST /inference HTTP/1.1\r\nhost: x\r\n{rest}");
        let mut client = open(&bench, request.as_bytes()).await;
        if told == 2 {
            eventually("it is noted", async || (bench.traffic)()[0].1.requests == told).await;
            client.write_all(b"abc").await.unwrap();
        }
        let answer = until(&mut client, "no ready replica").await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        let counts = Counts {
            requests: told,
            errors: told,
            ..Default::default()
        };
        assert_eq!((bench.traffic)(), [(Revision(1), counts)], "{rest}");
    }
}
