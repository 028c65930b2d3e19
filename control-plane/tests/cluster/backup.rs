//! Backups that are streamed from whoever leads.

use std::path::Path;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use mosec_control_plane::backup::{self, Restore};
use mosec_types::PipelineSpec;
use mosec_wire::control::ControlError;
use tonic::Code;

use crate::harness::{Cluster, Watch, pipeline};

/// More than what connections and streams hold on their way.
const LARGE: usize = 8 << 20;

/// Deploys a pipeline whose code has this many bytes.
async fn deploy(cluster: &Cluster, name: &str, bytes: usize) -> PipelineSpec {
    let client = cluster.client(&cluster.members());
    let code: Vec<u8> = (0..bytes)
        .map(|n| (n * 31 % 251) as u8 ^ name.len() as u8)
        .collect();
    let code = Bytes::from(code);
    let id = mosec_bundle::id_of(&code);
    client.put_bundle(id, code).await.unwrap();
    let mut spec = pipeline(name, 1);
    spec.source.dir = "".into();
    spec.source.bundle = Some(id);
    client.deploy(&spec, None).await.unwrap();
    spec
}

async fn backup_through(cluster: &Cluster, member: u64, path: &Path) {
    // Any member says who leads, and the client goes there.
    let mut stream = cluster.client(&[member]).backup().await.unwrap();
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.next().await.unwrap() {
        bytes.extend_from_slice(&chunk);
    }
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn any_member_leads_to_a_backup_and_all_go_on_from_it() {
    let mut cluster = Cluster::start(3).await;
    cluster.leader().await;
    deploy(&cluster, "early", 300_000).await;
    deploy(&cluster, "earlier", 0).await;
    let dir = tempfile::tempdir().unwrap();
    for member in 1..=3 {
        let path = dir.path().join(member.to_string());
        backup_through(&cluster, member, &path).await;
        let contents = backup::check(&path).unwrap();
        assert_eq!(contents.header.cluster_id, "test");
        assert_eq!(contents.header.bundles.len(), 2);
        let members = (1..=3).map(|id| (id, cluster.address(id).to_string()));
        assert_eq!(contents.header.members, members.collect());
        assert_eq!(contents.model.histories.len(), 2);
    }
    let client = cluster.client(&[1, 2, 3]);
    let late = client.deploy(&pipeline("late", 1), None).await.unwrap();
    // It has seen what the backup has not.
    let mut watch = Watch::start(&client, Default::default());
    watch.until_revision(late, |_| true).await;
    let seen = watch.topology.borrow().version;

    for member in 1..=3 {
        cluster.stop(member).await;
        cluster.wipe(member);
        let folder = cluster.bundles(member).parent().unwrap().to_owned();
        let plan = Restore {
            backup: dir.path().join("1"),
            data_dir: folder.clone(),
            cluster_id: "test".into(),
            member,
            peers: Default::default(),
            new_members: false,
            round: 1,
        };
        backup::restore(&plan).unwrap();
        let marker = folder.join(backup::MARKER);
        std::fs::write(&marker, b"").unwrap();
        let refused = cluster.refused(member).await;
        assert!(
            refused.contains("was interrupted: run `mosectl restore` again"),
            "{refused}"
        );
        std::fs::remove_file(&marker).unwrap();
    }
    for member in 1..=3 {
        cluster.restart(member).await;
    }
    cluster.leader().await;
    // The same watcher, which goes on from where it was.
    let restored = watch
        .until("what is restored", |topology| topology.deployment(late).is_none())
        .await;
    assert!(restored.version > seen + 1_000_000);
    assert_eq!(restored.deployments.len(), 2);
    let next = client.deploy(&pipeline("next", 1), None).await.unwrap();
    assert!(
        next.0 > restored.version.max(late.0),
        "no number is given away twice"
    );
    // One disk is lost as ever.
    cluster.stop(3).await;
    cluster.wipe(3);
    cluster.restart(3).await;
    let mut third = Watch::start(&cluster.client(&[3]), Default::default());
    third.until_revision(next, |_| true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_goes_leaves_no_backup_that_looks_whole() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    deploy(&cluster, "large", LARGE).await;
    let mut stream = cluster.client(&[leader]).backup().await.unwrap();
    assert!(stream.next().await.unwrap().is_some());
    cluster.stop(leader).await;
    let error = loop {
        match stream.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended as if all were there"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, ControlError::Refused { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_admins_get_one() {
    let cluster = Cluster::start_secure(1).await;
    cluster.leader().await;
    let viewer = cluster
        .ca
        .as_ref()
        .unwrap()
        .issue(mosec_wire::tls::Role::Deployer, "d")
        .unwrap();
    let refused = cluster
        .client_as(&[1], Some(viewer))
        .backup()
        .await
        .err()
        .unwrap();
    let ControlError::Refused { code, message } = refused else {
        panic!("{refused}");
    };
    assert_eq!(code, Code::PermissionDenied);
    assert_eq!(
        message,
        "deployer/d may not run `mosectl backup`: its role is deployer, expected admin"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_keeps_the_code_it_needs_from_being_removed() {
    let cluster = Cluster::start(1).await;
    cluster.leader().await;
    deploy(&cluster, "p", 1000).await;
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(86_400);
    let files = || {
        let files = std::fs::read_dir(cluster.bundles(1)).unwrap();
        files.map(|file| std::fs::File::open(file.unwrap().path()).unwrap())
    };
    files().for_each(|file| file.set_modified(long_ago).unwrap());
    let mut stream = cluster.client(&[1]).backup().await.unwrap();
    assert!(stream.next().await.unwrap().is_some());
    let ages: Vec<_> = files()
        .map(|file| file.metadata().unwrap().modified().unwrap())
        .collect();
    assert!(ages.len() == 1 && ages[0] > long_ago, "{ages:?}");
}
