//! A gateway's own series, and for how long they are there.

use mosec_types::topology::Phase;
use mosec_types::{ErrorCode, PipelineSpec, Span, SpanKind, StageIndex};

use crate::bench::{Bench, ONE, answer, deployment, eventually, key, only, spec, topology};
use crate::client::{BOTH, Version, body};

impl Bench {
    async fn page(&self) -> String {
        let mut client = self.client(Version::Http1).await;
        let answer = client.request("GET", "/metrics", body("")).await;
        answer.text().to_owned()
    }
}

/// Every line of a page is a comment or a sample, and every sample's family was declared before it, once.
fn check(page: &str) {
    let mut families: Vec<&str> = Vec::new();
    let body = page.strip_suffix("# EOF\n").expect("an end");
    for line in body.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            let name = declared.split(' ').next().unwrap();
            assert!(!families.contains(&name), "{name} twice");
            families.push(name);
        } else if !line.starts_with("# HELP ") {
            let (series, value) = line.rsplit_once(' ').expect("a value");
            value.parse::<f64>().expect("a number");
            let name = series.split('{').next().unwrap();
            let family = families.last().expect("a family");
            let suffix = name
                .strip_prefix(family)
                .unwrap_or_else(|| panic!("{name} in {family}"));
            assert!(["", "_sum", "_count", "_bucket"].contains(&suffix), "{line}");
        }
    }
}

#[tokio::test]
async fn requests_have_their_pipeline_revision_route_and_parts() {
    let bench = Bench::start(PipelineSpec {
        capacity: 1,
        ..spec()
    })
    .await;
    for code in [ErrorCode::Ok, ErrorCode::Ok, ErrorCode::Inference] {
        let client = bench.post(Version::Http1, "{}");
        let (mut request, _credit) = only(bench.batch().await);
        // A part in two pieces is one part.
        for micros in [1_000, 2_000] {
            request.spans.push(Span {
                kind: SpanKind::Worker,
                stage: StageIndex(0),
                micros,
            });
        }
        answer(request, code, "");
        client.await.unwrap();
    }
    let mut client = bench.client(Version::Http1).await;
    client.request("POST", "/inference", body(vec![0; 2048])).await;
    let _running = bench.post(Version::Http1, "{}");
    let (_request, _credit) = only(bench.batch().await);
    let _waiting = bench.post(Version::Http1, "{}");
    let dispatcher = bench.registry.dispatcher(key(1, 0)).unwrap();
    eventually("it waits", async || dispatcher.queued() == 1).await;
    assert_eq!(bench.post(Version::Http1, "{}").await.unwrap().status, 429);

    let page = bench.page().await;
    check(&page);
    let stage = "pipeline=\"echo\",stage=\"Echo_1\"";
    let request = |code| {
        format!(
            "mosec_gateway_requests_total{{code=\"{code}\",pipeline=\"echo\",revision=\"1\",route=\"/inference\"}}"
        )
    };
    let refused = |reason| format!("mosec_gateway_refused_total{{pipeline=\"echo\",reason=\"{reason}\"}}");
    let part = |part| format!("mosec_gateway_part_seconds_count{{part=\"{part}\",{stage}}}");
    let dispatch = |name| format!("mosec_dispatch_{name}{{{stage}}}");
    let expected = [
        (request("200"), "2"),
        (request("500"), "1"),
        (request("413"), "1"),
        (request("429"), "1"),
        (refused("body_too_large"), "1"),
        (refused("queue_full"), "1"),
        (
            "mosec_gateway_request_seconds_count{pipeline=\"echo\",revision=\"1\"}".into(),
            "2",
        ),
        (
            "mosec_gateway_part_seconds_count{part=\"gateway\",pipeline=\"echo\",stage=\"\"}".into(),
            "2",
        ),
        (part("queue"), "2"),
        (part("worker"), "2"),
        (
            format!("mosec_gateway_part_seconds_sum{{part=\"worker\",{stage}}}"),
            "0.006",
        ),
        (dispatch("queue_requests"), "1"),
        (dispatch("queue_limit_requests"), "1"),
        (dispatch("batch_limit_requests"), "1"),
        (dispatch("in_flight_batches"), "1"),
        (dispatch("credits"), "0"),
        (dispatch("queue_wait_seconds_count"), "4"),
        (dispatch("batch_wait_seconds_count"), "4"),
        (dispatch("batches_total"), "4"),
        (
            "mosec_dispatch_refused_total{pipeline=\"echo\",reason=\"queue_full\",stage=\"Echo_1\"}".into(),
            "1",
        ),
        ("mosec_dispatch_links_down".into(), "0"),
    ];
    for (series, value) in expected {
        assert!(
            page.contains(&format!("\n{series} {value}\n")),
            "{series}: {page}"
        );
    }
}

#[tokio::test]
async fn failures_are_shown_before_the_first_of_them() {
    let bench = Bench::start(spec()).await;
    let page = bench.page().await;
    check(&page);
    for route in ["/inference", "/text"] {
        for code in [200, 408, 429, 500, 503] {
            let labels = format!("code=\"{code}\",pipeline=\"echo\",revision=\"1\",route=\"{route}\"");
            let series = format!("\nmosec_gateway_requests_total{{{labels}}} 0\n");
            assert!(page.contains(&series), "{series}: {page}");
        }
    }
    // MOSEC has no series of answers before there is one.
    assert!(!page.contains("mosec_service_throughput_total"), "{page}");
    for reason in ["queue_full", "no_replica", "draining", "body_memory"] {
        let series = format!("\nmosec_gateway_refused_total{{pipeline=\"echo\",reason=\"{reason}\"}} 0\n");
        assert!(page.contains(&series), "{series}: {page}");
    }
}

#[tokio::test]
async fn a_request_whose_client_left_counts_as_one() {
    let bench = Bench::start(spec()).await;
    let labels = "pipeline=\"echo\",revision=\"1\",route=\"/inference\"";
    let ended = async |code| {
        let series = format!("mosec_gateway_requests_total{{code=\"{code}\",{labels}}}");
        bench.series(&series).await
    };
    for (before, version) in BOTH.into_iter().enumerate() {
        let client = bench.post(version, "{}");
        let (request, credit) = only(bench.batch().await);
        client.abort();
        eventually("it is counted", async || ended(499).await == (before + 1) as f64).await;
        // An answer that nobody reads is none.
        answer(request, ErrorCode::Ok, "");
        drop(credit);
    }
    assert_eq!(bench.post(Version::Http1, "").await.unwrap().status, 200);
    assert_eq!((ended(200).await, ended(499).await), (1.0, 2.0));
}

#[tokio::test]
async fn the_series_of_a_revision_go_with_it_and_no_late_answer_brings_them_back() {
    let bench = Bench::start(spec()).await;
    let early = bench.post(Version::Http1, "{}");
    answer(only(bench.batch().await).0, ErrorCode::Ok, "early");
    assert_eq!(early.await.unwrap().text(), "early");
    let mut client = bench.client(Version::Http1).await;
    client.request("POST", "/inference", body(vec![0; 2048])).await;
    let late = bench.post(Version::Http1, "{}");
    let (request, credit) = only(bench.batch().await);
    bench.grant(key(2, 0), ONE);
    bench
        .topology
        .send(topology(2, vec![deployment(2, spec(), Phase::Serving)]))
        .unwrap();
    eventually("the second revision is there", async || {
        bench.page().await.contains("revision=\"2\"")
    })
    .await;
    let page = bench.page().await;
    assert!(!page.contains("revision=\"1\""), "{page}");
    // The pipeline was there all the time, and so is what its revisions share.
    for shared in [
        "mosec_gateway_refused_total{pipeline=\"echo\",reason=\"body_too_large\"} 1",
        "mosec_gateway_part_seconds_count{part=\"gateway\",pipeline=\"echo\",stage=\"\"} 1",
        "mosec_gateway_part_seconds_count{part=\"queue\",pipeline=\"echo\",stage=\"Echo_1\"} 1",
    ] {
        assert!(page.contains(&format!("\n{shared}\n")), "{shared}: {page}");
    }
    answer(request, ErrorCode::Ok, "late");
    drop(credit);
    assert_eq!(late.await.unwrap().text(), "late");
    let page = bench.page().await;
    assert!(!page.contains("revision=\"1\""), "{page}");

    // Without any revision nothing of the pipeline is left, but what MOSEC's series say of its routes.
    bench.topology.send(topology(3, Vec::new())).unwrap();
    eventually("nothing is left", async || {
        !bench.page().await.contains("pipeline=\"echo\"")
    })
    .await;
    check(&bench.page().await);
}
