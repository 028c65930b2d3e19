//! Bundles of code: stored on a majority, repaired, and removed when no revision names them.

use std::fs;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mosec_control_plane::{BundleLimits, Config};
use mosec_types::{BundleId, PipelineName, PipelineSpec};
use mosec_wire::control::{ControlError, bundle_chunks, proto};
use mosec_wire::tls::Role;
use tonic::Code;

use crate::harness::{Cluster, eventually, numbered, pipeline};

/// Soon enough for a test to wait for it.
fn quickly(config: &mut Config) {
    config.bundles = BundleLimits {
        grace: Duration::from_millis(100),
        check_every: Duration::from_millis(100),
        ..BundleLimits::default()
    };
}

/// More than one chunk.
fn bundle(seed: u8) -> (BundleId, Bytes) {
    let bytes = Bytes::from(vec![seed; 700_000]);
    (mosec_bundle::id_of(&bytes), bytes)
}

fn bundled(name: &str, id: BundleId) -> PipelineSpec {
    let mut spec = pipeline(name, 1);
    spec.source.bundle = Some(id);
    spec.source.dir = String::new();
    spec
}

fn has(cluster: &Cluster, member: u64, id: &BundleId) -> bool {
    cluster.bundles(member).join(id.to_string()).exists()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_member_has_what_was_put_on_one_and_can_give_it() {
    let cluster = Cluster::start_secure(3).await;
    let (id, bytes) = bundle(1);
    let follower = cluster.followers().await[0];
    let operator = cluster.client(&[follower]);
    let missing = operator.deploy(&bundled("p", id), None).await.unwrap_err();
    let ControlError::Refused { code, message } = missing else {
        panic!("{missing}")
    };
    assert_eq!(code, Code::FailedPrecondition);
    assert!(
        message.contains("is on 0 of 3 control-plane members"),
        "{message}"
    );

    assert!(!operator.has_bundle(&id).await.unwrap());
    operator.put_bundle(id, bytes.clone()).await.unwrap();
    assert!(cluster.members().iter().all(|&member| has(&cluster, member, &id)));
    operator.put_bundle(id, bytes.clone()).await.unwrap();
    operator.deploy(&bundled("p", id), None).await.unwrap();

    let ca = cluster.ca.as_ref().unwrap();
    for member in cluster.members() {
        let agent = cluster.client_as(&[member], Some(ca.issue(Role::Agent, "a").unwrap()));
        assert_eq!(agent.get_bundle(&id, 1 << 20).await.unwrap(), bytes);
        let too_large = agent.get_bundle(&id, 1000).await.unwrap_err().to_string();
        assert!(too_large.contains("larger than 1000 bytes"), "{too_large}");
        let (other, _) = bundle(2);
        let unknown = agent.get_bundle(&other, 1 << 20).await.unwrap_err().to_string();
        assert!(unknown.contains("has no copy"), "{unknown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_and_sizes_and_hashes_are_checked() {
    let limit = |config: &mut Config| config.bundles.max_bytes = 500_000;
    let ca = mosec_wire::tls::ClusterCa::create().unwrap();
    let cluster = Cluster::start_with(1, Some(ca), limit).await;
    cluster.leader().await;
    let ca = cluster.ca.as_ref().unwrap();
    let identity = |role| ca.issue(role, "x").unwrap();
    let (operator, agent, gateway) = (
        identity(Role::Deployer),
        identity(Role::Agent),
        identity(Role::Gateway),
    );
    let (id, bytes) = bundle(1);
    let put = |identity, id: BundleId, bytes: &Bytes| {
        let mut service = cluster.service(1, Some(identity));
        let chunks: Vec<_> = bundle_chunks(&id, bytes).collect();
        async move {
            let put = service.put_bundle(futures_util::stream::iter(chunks)).await;
            put.map(drop).unwrap_err()
        }
    };
    for stranger in [&agent, &gateway] {
        assert_eq!(put(stranger, id, &bytes).await.code(), Code::PermissionDenied);
    }
    for stranger in [&operator, &gateway] {
        let request = proto::GetBundleRequest { id: id.to_string() };
        let refused = cluster
            .service(1, Some(stranger))
            .get_bundle(request)
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
    }
    let large = put(&operator, id, &bytes).await;
    assert_eq!(large.code(), Code::ResourceExhausted, "{large}");
    let wrong = put(&operator, id, &bytes.slice(..1000)).await;
    assert_eq!(wrong.code(), Code::InvalidArgument, "{wrong}");
    assert!(!has(&cluster, 1, &id));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_majority_is_enough_and_is_needed() {
    let mut cluster = Cluster::start(3).await;
    let (id, bytes) = bundle(1);
    let lost = cluster.followers().await[0];
    cluster.stop(lost).await;
    let left = cluster.members();
    let client = cluster.client(&left);
    let started = Instant::now();
    client.put_bundle(id, bytes.clone()).await.unwrap();
    println!("put without one member after {:?}", started.elapsed());
    client.deploy(&bundled("p", id), None).await.unwrap();

    // The one that was away fetches it by itself.
    cluster.restart(lost).await;
    eventually("the bundle on all", || {
        std::future::ready(has(&cluster, lost, &id).then_some(()))
    })
    .await;

    cluster.stop(left[0]).await;
    cluster.stop(lost).await;
    let (other, bytes) = bundle(2);
    let mut service = cluster.service(left[1], None);
    let chunks: Vec<_> = bundle_chunks(&other, &bytes).collect();
    let refused = service
        .put_bundle(futures_util::stream::iter(chunks))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Aborted);
    let text = refused.message();
    let named = [left[0], lost].map(|member| format!("member {member}: "));
    assert!(
        text.contains("is on 1 of 3 control-plane members") && named.iter().all(|name| text.contains(name)),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_repairs_what_is_lost_or_damaged() {
    let mut cluster = Cluster::start_with(3, None, quickly).await;
    let (id, bytes) = bundle(1);
    let client = cluster.client(&[1, 2, 3]);
    client.put_bundle(id, bytes.clone()).await.unwrap();
    client.deploy(&bundled("p", id), None).await.unwrap();
    let file = cluster.bundles(2).join(id.to_string());
    fs::write(&file, "damaged").unwrap();
    let mut config = mosec_wire::control::ClientConfig::new(vec![cluster.address(2).to_string()], None);
    config.call_timeout = Duration::from_secs(5);
    let second = mosec_wire::control::ControlClient::new(config).unwrap();
    assert_eq!(second.get_bundle(&id, 1 << 20).await.unwrap(), bytes);
    assert_eq!(fs::read(&file).unwrap(), bytes);

    cluster.stop(3).await;
    cluster.wipe(3);
    cluster.restart(3).await;
    eventually("the bundle on the member that lost its disk", || {
        std::future::ready(has(&cluster, 3, &id).then_some(()))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_revision_names_goes_after_a_while() {
    let cluster = Cluster::start_with(3, None, quickly).await;
    let client = cluster.client(&[1, 2, 3]);
    let bundles: Vec<_> = (0..3).map(bundle).collect();
    for (id, bytes) in &bundles {
        // Put again where it has gone before it was named: the grace is short here.
        eventually("a revision with its bundle", || async {
            client.put_bundle(*id, bytes.clone()).await.ok()?;
            client.deploy(&bundled("p", *id), None).await.ok()
        })
        .await;
    }
    let (extra, bytes) = bundle(9);
    client.put_bundle(extra, bytes).await.unwrap();
    let all_are = |there: bool, id: BundleId| {
        let members = cluster.members();
        let agree = members.iter().all(|&member| has(&cluster, member, &id) == there);
        std::future::ready(agree.then_some(()))
    };
    eventually("the bundle that nothing names is gone", || all_are(false, extra)).await;
    for (id, _) in &bundles {
        eventually("those that can be gone back to stay", || all_are(true, *id)).await;
    }
    client.delete(&PipelineName::new("p").unwrap()).await.unwrap();
    for (id, _) in &bundles {
        eventually("those of a deleted pipeline go", || all_are(false, *id)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_path_needs_no_bundle_and_an_id_is_checked() {
    let cluster = Cluster::start(1).await;
    cluster.leader().await;
    let mut service = cluster.service(1, None);
    let mut request = numbered(&pipeline("p", 1), 1);
    service.deploy(request.clone()).await.unwrap();
    request.spec.as_mut().unwrap().source.as_mut().unwrap().bundle = Some("../../etc".into());
    let refused = service.deploy(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("source.bundle"), "{refused}");
}
