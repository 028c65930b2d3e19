//! Which series there are, and for how long.

use std::sync::Arc;

use mosec_shm_ring::Batch;
use mosec_telemetry::render;
use mosec_types::{ErrorCode, PipelineName};

use super::bench::{Bench, TestWorker, Upstream, key, topology};

const STAGE: &str = "{pipeline=\"p\",stage=\"A\"}";

/// The samples with this text in their labels, without the buckets of histograms.
fn samples(bench: &Bench, labels: &str) -> Vec<String> {
    let text = render(&[&bench.series]);
    let of_agent = |line: &&str| line.starts_with("mosec_agent_") || line.starts_with("mosec_service_");
    let lines = text.lines().filter(of_agent);
    let lines =
        lines.filter(|line| line.contains(labels) && !line.contains("_bucket{") && !line.contains("_sum{"));
    lines.map(str::to_owned).collect()
}

fn serve(worker: &TestWorker, upstream: &Arc<Upstream>, pool: &Arc<crate::pool::Pool>) {
    let _outcome = upstream.send(pool, 0, &["x"]);
    let batch: Batch = worker.take().unwrap();
    worker.answer(&batch, &[(0, ErrorCode::Ok, "y")]);
}

#[tokio::test]
async fn a_stage_has_its_series() {
    let bench = Bench::new();
    let (pool, upstream) = (bench.pool(1, 0), Arc::<Upstream>::default());
    let worker = bench.worker(&pool);
    serve(&worker, &upstream, &pool);
    let _outcome = upstream.send(&pool, 0, &["x"]);
    let _placed = pool.metrics.placed();
    let depth = worker.worker.depth();
    let expected = [
        ("backlog_batches", 0),
        ("credits", depth),
        ("in_flight_batches", 1),
        ("ready_workers", 1),
        ("redispatched_total", 0),
        ("worker_restarts_total", 0),
        ("worker_seconds_count", 1),
        ("workers", 1),
    ];
    let expected: Vec<_> = expected
        .iter()
        .map(|(name, value)| format!("mosec_agent_{name}{STAGE} {value}"))
        .collect();
    let mut found = samples(&bench, STAGE);
    found.sort();
    assert_eq!(found, expected);
    let workers = [
        "mosec_service_batch_size_count{connection=\"1\",stage=\"A\"} 2",
        "mosec_service_process_duration_second_count{connection=\"1\",stage=\"A\"} 1",
    ];
    assert_eq!(samples(&bench, "connection=\"1\""), workers);
}

#[tokio::test]
async fn revisions_share_series_until_the_last_has_gone() {
    let bench = Bench::new();
    let upstream = Arc::<Upstream>::default();
    let (first, second) = (bench.pool(1, 0), bench.pool(2, 0));
    let workers = [&first, &second].map(|pool| bench.worker(pool));
    serve(&workers[0], &upstream, &first);
    let gauge = |name: &str| bench.gauge(&format!("mosec_agent_{name}"), "A");
    let depths: u32 = workers.iter().map(|worker| worker.worker.depth()).sum();
    assert_eq!((gauge("ready_workers"), gauge("credits")), (2.0, depths.into()));
    let [old, new] = workers;
    // Its worker is still among the ready ones: what it added is taken back all the same.
    drop((old, first));
    bench.agent.remove_pool(key(1, 0));
    assert_eq!(gauge("ready_workers"), 1.0);
    assert_eq!(gauge("credits"), f64::from(new.worker.depth()));
    assert!(
        !samples(&bench, "connection=").is_empty(),
        "a stage A is there yet"
    );
    drop((new, second));
    bench.agent.remove_pool(key(2, 0));
    assert_eq!(samples(&bench, "stage="), Vec::<String>::new());
}

#[tokio::test]
async fn a_pipeline_that_goes_leaves_the_workers_of_another_with_a_stage_of_that_name() {
    let bench = Bench::new();
    let upstream = Arc::<Upstream>::default();
    let mut other = topology(2, 16);
    let spec = Arc::make_mut(&mut other.deployments[0].spec);
    spec.name = PipelineName::new("q").unwrap();
    let (first, second) = (bench.pool(1, 0), bench.pool_of(&other, key(2, 0)));
    let worker = bench.worker(&first);
    serve(&worker, &upstream, &first);
    drop((worker, first));
    bench.agent.remove_pool(key(1, 0));
    assert_eq!(samples(&bench, "pipeline=\"p\""), Vec::<String>::new());
    assert!(!samples(&bench, "pipeline=\"q\"").is_empty());
    assert!(!samples(&bench, "connection=\"1\"").is_empty());
    drop(second);
    bench.agent.remove_pool(key(2, 0));
    assert_eq!(samples(&bench, "stage="), Vec::<String>::new());
}
