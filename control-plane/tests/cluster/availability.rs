//! Writes and watches through the loss and return of members.

use std::time::Instant;

use mosec_control_plane::{Config, ControlPlane};
use mosec_telemetry::Series;
use mosec_types::spec::MAX_LINK_REQUEST_BYTES;
use mosec_types::topology::Phase;
use mosec_types::{PipelineName, Topology};
use mosec_wire::control::ControlError;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::harness::{Cluster, PATIENCE, Watch, eventually, numbered, pipeline};

#[tokio::test(flavor = "multi_thread")]
async fn writes_survive_the_loss_of_the_leader_and_of_all() {
    let mut cluster = Cluster::start(3).await;
    let followers = cluster.followers().await;
    let mut watch = Watch::start(&cluster.client(&followers[1..]), Topology::default());
    let first = cluster
        .client(&followers[..1])
        .deploy(&pipeline("first", 1), None)
        .await
        .unwrap();
    let seen = watch.until_revision(first, |_| true).await;
    assert_eq!(
        (seen.phase, &*seen.spec),
        (Phase::Starting, &pipeline("first", 1))
    );

    let lost = cluster.leader().await;
    cluster.stop(lost).await;
    let started = Instant::now();
    let client = cluster.client(&[1, 2, 3]);
    let second = client.deploy(&pipeline("second", 1), None).await.unwrap();
    println!("writes were back after {:?}", started.elapsed());
    assert!(second > first);
    watch.until_revision(second, |_| true).await;

    for member in cluster.members() {
        cluster.stop(member).await;
    }
    for member in 1..=3 {
        cluster.restart(member).await;
    }
    let status = client.status().await.unwrap();
    let revisions: Vec<_> = status
        .deployments
        .iter()
        .map(|d| d.deployment.as_ref().unwrap().revision)
        .collect();
    assert_eq!(revisions, [first.0, second.0]);
    assert_eq!((status.members.len(), status.cluster_id.as_str()), (3, "test"));
    client.delete(&PipelineName::new("first").unwrap()).await.unwrap();
    watch
        .until("one pipeline", |topology| topology.deployments.len() == 1)
        .await;
    for member in cluster.members() {
        let mut own = Watch::start(&cluster.client(&[member]), Topology::default());
        own.until("one pipeline on each member", |topology| {
            topology.deployments.len() == 1
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_whose_requests_no_link_carries_is_refused() {
    let cluster = Cluster::start(1).await;
    let mut spec = pipeline("p", 1);
    spec.max_request_bytes = MAX_LINK_REQUEST_BYTES + 1;
    let refused = cluster
        .service(cluster.leader().await, None)
        .deploy(numbered(&spec, 1))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(
        refused
            .message()
            .starts_with("max_request_bytes: expected at most 64 MiB")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_deploy_makes_one_revision() {
    let cluster = Cluster::start(3).await;
    cluster.leader().await;
    let mut revisions = Vec::new();
    for member in [1, 2, 3, 1] {
        let deploy = || async {
            let reply = cluster
                .service(member, None)
                .deploy(numbered(&pipeline("p", 1), 1))
                .await;
            match reply {
                Ok(reply) => Some(reply.into_inner().revision),
                // A follower may not know the leader yet.
                Err(status) if status.code() == Code::Unavailable => None,
                Err(status) => panic!("{status}"),
            }
        };
        revisions.push(eventually("an answer", deploy).await);
    }
    revisions.dedup();
    assert_eq!(revisions.len(), 1);
    assert_eq!(cluster.client(&[2]).status().await.unwrap().deployments.len(), 1);
    let next = cluster
        .service(cluster.leader().await, None)
        .deploy(numbered(&pipeline("p", 1), 2))
        .await
        .unwrap();
    assert!(next.into_inner().revision > revisions[0]);
    let stale = cluster
        .service(cluster.leader().await, None)
        .deploy(numbered(&pipeline("p", 1), 1))
        .await
        .unwrap_err();
    assert_eq!(stale.code(), Code::Aborted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_minority_cannot_write_and_says_so() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client(&[1, 2, 3]);
    let revision = client.deploy(&pipeline("p", 1), None).await.unwrap();
    for member in cluster.followers().await {
        cluster.stop(member).await;
    }
    let left = cluster.members()[0];
    let error = cluster
        .service(left, None)
        .deploy(numbered(&pipeline("q", 1), 1))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    // What it knows it still tells.
    let mut watch = Watch::start(&cluster.client(&[left]), Topology::default());
    watch.until_revision(revision, |_| true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_lost_its_disk_catches_up_from_the_log() {
    lose_a_disk(2000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_lost_its_disk_catches_up_by_a_snapshot() {
    lose_a_disk(10).await;
}

/// `snapshot_every`: with ten, the log that the member needs is gone.
async fn lose_a_disk(snapshot_every: u64) {
    let mut cluster =
        Cluster::start_with(3, None, |config| config.raft.snapshot_every = snapshot_every).await;
    let client = cluster.client(&[1, 2, 3]);
    client.deploy(&pipeline("kept", 1), None).await.unwrap();
    let lost = cluster.followers().await[0];
    cluster.stop(lost).await;
    cluster.wipe(lost);
    for round in 0..30 {
        client
            .deploy(&pipeline(&format!("p{}", round % 3), 1), None)
            .await
            .unwrap();
    }
    cluster.restart(lost).await;
    let whole = client.status().await.unwrap();
    let mut watch = Watch::start(&cluster.client(&[lost]), Topology::default());
    let topology = watch
        .until("everything", |topology| topology.version >= whole.version)
        .await;
    assert_eq!(topology.deployments.len(), whole.deployments.len());
    // And it can be relied on: a majority of it and one other.
    let other = cluster
        .members()
        .into_iter()
        .find(|&member| member != lost)
        .unwrap();
    cluster.stop(other).await;
    client.deploy(&pipeline("after", 1), None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_from_another_history_is_set_right() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client(&[1]);
    let revision = client.deploy(&pipeline("p", 1), None).await.unwrap();
    let stray = Topology {
        version: 1_000_000,
        ..Default::default()
    };
    let mut watch = Watch::start(&client, stray);
    watch.until_revision(revision, |_| true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_refused_with_their_reason() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client(&cluster.followers().await);
    let refused = |result: Result<_, ControlError>| match result {
        Err(ControlError::Refused { code, message }) => (code, message),
        other => panic!("{other:?}"),
    };
    let no_stage = client
        .deploy(
            &mosec_types::PipelineSpec {
                stages: vec![],
                ..pipeline("p", 1)
            },
            None,
        )
        .await;
    assert_eq!(
        refused(no_stage),
        (
            Code::InvalidArgument,
            "stages: expected 1 to 256 stages, found 0".into()
        )
    );
    let crowd = refused(
        client
            .deploy(&pipeline("p", 4096), None)
            .await
            .and(client.deploy(&crowd(), None).await),
    );
    assert_eq!(
        crowd.1,
        "stages: expected at most 4096 replicas in all, found 8192"
    );
    let mut large = pipeline("p", 1);
    large.source.argv = vec!["x".repeat(70_000)];
    let (code, message) = refused(client.deploy(&large, None).await);
    assert!(
        code == Code::InvalidArgument && message.contains("bytes in the log, more than 65024 can"),
        "{message}"
    );
    let mut thief = pipeline("q", 1);
    thief.routes[0].path = "/p".into();
    let taken = refused(client.deploy(&thief, None).await);
    assert_eq!(
        taken,
        (
            Code::FailedPrecondition,
            "the path \"/p\" belongs to pipeline p".into()
        )
    );
    // A plan is refused for what its deployment would be.
    let planned = client.plan(&thief).await.map(|_| mosec_types::Revision(0));
    assert_eq!(refused(planned), taken);
    let unknown = client
        .delete(&PipelineName::new("x").unwrap())
        .await
        .map(|()| mosec_types::Revision(0));
    assert_eq!(
        refused(unknown),
        (Code::NotFound, "there is no pipeline x".into())
    );
}

fn crowd() -> mosec_types::PipelineSpec {
    let mut spec = pipeline("p", 4096);
    spec.stages.push(mosec_types::StageSpec {
        name: "More".into(),
        ..spec.stages[0].clone()
    });
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_node_needs_no_disk_no_peers_and_no_port() {
    let (series, stop) = (Series::default(), CancellationToken::new());
    let node = ControlPlane::build(Config::single("alone"), &series)
        .await
        .unwrap();
    let address = node.local_addr().to_string();
    let running = tokio::spawn(node.run(stop.clone()));
    let config = mosec_wire::control::ClientConfig::new(vec![address], None);
    let client = mosec_wire::control::ControlClient::new(config).unwrap();
    client.deploy(&pipeline("p", 1), None).await.unwrap();
    // An open stream does not hold the end up.
    let mut watch = Watch::start(&client, Topology::default());
    watch
        .until("a pipeline", |topology| topology.deployments.len() == 1)
        .await;
    stop.cancel();
    tokio::time::timeout(PATIENCE, running)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}
