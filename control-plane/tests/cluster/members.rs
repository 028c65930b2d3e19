//! Members that come and go while the control plane works.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mosec_control_plane::Authority;
use mosec_types::Topology;
use mosec_wire::control::{ControlError, proto};
use mosec_wire::tls::ClusterCa;
use tonic::Code;

use crate::harness::{Cluster, Watch, eventually, pipeline};

fn refusal(error: ControlError) -> String {
    match error {
        ControlError::Refused { code, message } => {
            assert!(
                matches!(code, Code::FailedPrecondition | Code::InvalidArgument),
                "{code:?}"
            );
            message
        }
        ControlError::Unavailable { .. } => panic!("{error}"),
    }
}

fn is_whole(list: &proto::ListMembersResponse, members: &[u64]) -> bool {
    let ids: Vec<_> = list.members.iter().map(|member| member.id).collect();
    let level = |member: &proto::MemberRecord| {
        member.voter && member.report.as_ref().is_some_and(|report| report.level)
    };
    ids == members && list.members.iter().all(level) && list.leader.is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_member_is_replaced_under_writes() {
    let mut cluster = Cluster::start_secure(3).await;
    let admin = cluster.client(&[1, 2, 3]);
    let bytes = Bytes::from_static(b"code");
    let id = mosec_bundle::id_of(&bytes);
    admin.put_bundle(id, bytes.clone()).await.unwrap();
    let mut bundled = pipeline("bundled", 1);
    bundled.source.bundle = Some(id);
    bundled.source.dir = String::new();
    admin.deploy(&bundled, None).await.unwrap();

    // It knows the three that found the cluster, outlives them all, and has been told of the others by its watch.
    let writer = cluster.client(&[1, 2, 3]);
    let mut watch = Watch::start(&writer, Topology::default());
    let done = Arc::new(AtomicBool::new(false));
    let stop = done.clone();
    let writes = tokio::spawn(async move {
        let mut last = mosec_types::Revision(0);
        while !stop.load(Ordering::Relaxed) {
            let revision = writer.deploy(&pipeline("busy", 1), None).await.unwrap();
            assert!(revision > last, "{revision} came after {last}");
            last = revision;
        }
        last
    });
    for (old, new) in [(1, 4), (2, 5), (3, 6)] {
        let seeds = cluster.members();
        cluster.start_another(new, &seeds).await;
        let admin = cluster.client(&seeds);
        cluster.change(&admin, new, true).await.unwrap();
        cluster.change(&admin, old, false).await.unwrap();
        let why = cluster.ended(old).await.to_string();
        assert_eq!(
            why,
            format!(
                "member {old} was removed from the cluster: its --data-dir is of no more use, and another start of no help"
            )
        );
    }
    done.store(true, Ordering::Relaxed);
    assert!(writes.await.unwrap().0 > 0);

    let admin = cluster.client(&[5, 6]);
    let list = admin.members().await.unwrap();
    assert!(is_whole(&list, &[4, 5, 6]), "{list:?}");
    let revision = admin.deploy(&pipeline("late", 1), None).await.unwrap();
    watch.until_revision(revision, |_| true).await;
    for member in [4, 5, 6] {
        assert!(cluster.bundles(member).join(id.to_string()).exists());
    }
    let trail = admin.audit(None).await.unwrap();
    let actions: Vec<_> = trail.iter().map(|entry| entry.action.as_str()).collect();
    let added = format!("add member 6 at {}", cluster.address(6));
    assert!(actions.contains(&added.as_str()), "{actions:?}");
    assert!(actions.contains(&"remove member 3"), "{actions:?}");

    // A member that comes back from its disk is still one.
    cluster.stop(5).await;
    cluster.restart(5).await;
    let admin = cluster.client(&[4, 6]);
    eventually("all are level", || async {
        let list = admin.members().await.ok()?;
        is_whole(&list, &[4, 5, 6]).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_harm_is_refused() {
    let mut cluster = Cluster::start(3).await;
    // In which it is written who goes.
    crate::formats::format_becomes(&cluster, 2).await;
    let admin = cluster.client(&[1, 2, 3]);
    let add = async |member, address: &str| refusal(admin.add_member(member, address).await.unwrap_err());
    assert_eq!(add(0, "a:1").await, "member: expected a number from 1, found 0");
    assert_eq!(
        add(4, "nowhere").await,
        "address: expected host:port of at most 256 bytes, found \"nowhere\""
    );
    let there = cluster.address(1);
    assert_eq!(
        add(4, &there.to_string()).await,
        format!("{there} is the address of member 1")
    );
    let text = add(2, "other:7400").await;
    assert!(
        text.starts_with(&format!(
            "member 2 is at {} by --peers of member ",
            cluster.address(2)
        )),
        "{text}"
    );
    let waits = admin.add_member(4, "127.0.0.1:9").await.unwrap();
    assert!(
        waits
            .waits_for
            .starts_with("member 4 does not answer at 127.0.0.1:9: "),
        "{waits:?}"
    );

    // One that founded a cluster of its own.
    let alone = Cluster::start_with(1, cluster.ca.take(), |_| {}).await;
    alone.leader().await;
    let stranger = alone.address(1).to_string();
    let text = add(4, &stranger).await;
    assert!(
        text.contains("there is member 1 of cluster \"test\", expected member 4"),
        "{text}"
    );
    // Without two of three, no third goes.
    cluster.stop(3).await;
    let leader = cluster.leader().await;
    let other = 3 - leader;
    let refused = refusal(admin.remove_member(other).await.unwrap_err());
    assert!(
        refused.starts_with(&format!(
            "without member {other}, 2 of 2 members must have everything, and 1 do; member 3 does not answer: "
        )),
        "{refused}"
    );
    cluster.change(&admin, 3, false).await.unwrap();
    let text = add(3, "other:7400").await;
    assert!(
        text.starts_with("member 3 is at ")
            || text == "member 3 was removed, and numbers are not given twice: take 4",
        "{text}"
    );
    assert_eq!(admin.members().await.unwrap().next, 4);
    assert!(admin.remove_member(9).await.unwrap().done);
    let list = admin.members().await.unwrap();
    assert!(is_whole(&list, &[1, 2]), "{list:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_change_the_members_at_once_leave_one_who_signs() {
    let dir = tempfile::tempdir().unwrap();
    let ca = ClusterCa::create().unwrap();
    ca.save(dir.path()).unwrap();
    let key = ClusterCa::load(dir.path()).unwrap();
    let authority = Authority::new(key, Duration::from_secs(3600));
    let cluster = Cluster::start_with(3, Some(ca), |config| {
        config.authority = (config.member < 3).then(|| authority.clone());
    })
    .await;
    cluster.leader().await;
    let (one, other) = (cluster.client(&[1, 2, 3]), cluster.client(&[1, 2, 3]));
    let (first, second) = tokio::join!(cluster.change(&one, 1, false), cluster.change(&other, 2, false));
    let refused = match (first, second) {
        (Ok(()), Err(refused)) | (Err(refused), Ok(())) => refusal(refused),
        both => panic!("{both:?}"),
    };
    assert!(
        refused.contains("is the last that holds the authority's key"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_nobody_talks_to_stops_at_once() {
    let mut cluster = Cluster::start(1).await;
    cluster.leader().await;
    let begun = Instant::now();
    cluster.stop(1).await;
    // Two seconds are what calls under way are given.
    assert!(
        begun.elapsed() < Duration::from_millis(1500),
        "{:?}",
        begun.elapsed()
    );
}

/// Its topology is empty, and whoever took it for the cluster's would serve nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_nobody_has_added_yet_sends_no_topology() {
    let mut cluster = Cluster::start(1).await;
    cluster.leader().await;
    cluster.start_another(2, &[1]).await;
    for from_version in [0, 7] {
        let request = proto::WatchTopologyRequest {
            from_version,
            ..Default::default()
        };
        let refused = cluster.service(2, None).watch_topology(request).await;
        let status = refused.expect_err("it has nothing to send");
        assert_eq!(
            (status.code(), status.message()),
            (Code::Unavailable, "this member has nothing of its cluster yet")
        );
    }
    let admin = cluster.client(&[1]);
    let revision = admin.deploy(&pipeline("early", 1), None).await.unwrap();
    let mut watch = Watch::start(&cluster.client(&[2]), Topology::default());
    cluster.change(&admin, 2, true).await.unwrap();
    watch.until_revision(revision, |_| true).await;
}
