//! Who gets in, and who may do what.

use std::time::{Duration, SystemTime};

use mosec_types::{PipelineName, Topology};
use mosec_wire::control::proto::control_plane_client::ControlPlaneClient;
use mosec_wire::control::raft::raft_client::RaftClient;
use mosec_wire::control::raft::{Addressing, RaftRequest};
use mosec_wire::control::{ControlError, endpoint, proto};
use mosec_wire::tls::{ClusterCa, Fingerprint, Identity, Role, Validity};
use tonic::Code;

use crate::harness::{Cluster, Watch, eventually, numbered, pipeline};

#[tokio::test(flavor = "multi_thread")]
async fn each_role_may_do_its_own_part() {
    let cluster = Cluster::start_secure(3).await;
    let operator = cluster.client(&cluster.followers().await);
    let revision = operator.deploy(&pipeline("p", 1), None).await.unwrap();
    let issue = |role, name| cluster.ca.as_ref().unwrap().issue(role, name).unwrap();
    let (gateway, agent) = (issue(Role::Gateway, "g"), issue(Role::Agent, "a"));
    let member = cluster.leader().await;
    for identity in [&gateway, &agent] {
        let mut watch = Watch::start(
            &cluster.client_as(&[member], Some(identity.clone())),
            Topology::default(),
        );
        watch.until_revision(revision, |_| true).await;
        let refused = cluster
            .service(member, Some(identity))
            .deploy(numbered(&pipeline("q", 1), 1))
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
    }
    let register = |identity: &Identity, id: &str| {
        let request = proto::RegisterNodeRequest {
            id: id.into(),
            incarnation: 1,
            address: "a:1".into(),
            ..Default::default()
        };
        let mut service = cluster.service(member, Some(identity));
        async move { service.register_node(request).await }
    };
    register(&agent, "a").await.unwrap();
    let other = register(&agent, "b").await.unwrap_err();
    assert_eq!(
        (other.code(), other.message()),
        (Code::PermissionDenied, "node a may not speak for node b")
    );
    assert_eq!(
        register(&gateway, "g").await.unwrap_err().code(),
        Code::PermissionDenied
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_refused() {
    let cluster = Cluster::start_secure(1).await;
    cluster.leader().await;
    let foreign = ClusterCa::create().unwrap().issue(Role::Admin, "eve").unwrap();
    // Trusts the right authority, and shows a certificate of another.
    let ours = cluster.ca.as_ref().unwrap();
    let disguised = Identity::from_pem(ours.ca_pem(), foreign.cert_pem(), foreign.key_pem()).unwrap();
    for identity in [None, Some(&foreign), Some(&disguised)] {
        let result = cluster.service(1, identity).status(proto::StatusRequest {}).await;
        assert!(result.is_err(), "{result:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn raft_messages_reach_only_their_addressee() {
    let cluster = Cluster::start_secure(1).await;
    let issue = |role| cluster.ca.as_ref().unwrap().issue(role, "x").unwrap();
    let vote = |role, cluster_id: &str, to| {
        let channel = endpoint::channel(&cluster.address(1).to_string(), Some(&issue(role))).unwrap();
        let addressing = Addressing {
            cluster_id: cluster_id.into(),
            from: 9,
            to,
        };
        let request = RaftRequest {
            addressing: Some(addressing),
            payload: Default::default(),
        };
        async move { RaftClient::new(channel).vote(request).await.unwrap_err() }
    };
    let cases = [
        (
            Role::Admin,
            "test",
            1,
            Code::PermissionDenied,
            "admin/x may not call Vote: its role is admin, expected control-plane",
        ),
        (
            Role::ControlPlane,
            "prod",
            1,
            Code::FailedPrecondition,
            "a message of cluster \"prod\" reached \"test\"",
        ),
        (
            Role::ControlPlane,
            "test",
            2,
            Code::FailedPrecondition,
            "a message to member 2 reached member 1",
        ),
        (
            Role::ControlPlane,
            "test",
            1,
            Code::InvalidArgument,
            "payload: a record of 0 bytes is cut short",
        ),
    ];
    for (role, cluster_id, to, code, message) in cases {
        let status = vote(role, cluster_id, to).await;
        assert_eq!((status.code(), status.message()), (code, message));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn people_do_what_their_role_allows() {
    let cluster = Cluster::start_secure(3).await;
    // At a member that forwards: it asks for the caller's role before it lends its own.
    let members = cluster.followers().await;
    let client = |role, name| {
        let identity = cluster.ca.as_ref().unwrap().issue(role, name).unwrap();
        cluster.client_as(&members, Some(identity))
    };
    let (viewer, deployer, admin) = (
        client(Role::Viewer, "vera"),
        client(Role::Deployer, "dora"),
        client(Role::Admin, "ada"),
    );
    deployer.deploy(&pipeline("p", 1), None).await.unwrap();
    let name = PipelineName::new("p").unwrap();
    for person in [&viewer, &deployer, &admin] {
        assert_eq!(person.status().await.unwrap().deployments.len(), 1);
        assert_eq!(person.history(&name).await.unwrap()[0].by, "dora");
    }
    let refused = viewer.delete(&name).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "viewer/vera may not run `mosectl delete`: its role is viewer, expected deployer or admin"
    );
    admin.delete(&name).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_certificate_there_is_no_call() {
    let cluster = Cluster::start_secure(1).await;
    cluster.leader().await;
    let fingerprint = Fingerprint::of_pem(cluster.ca.as_ref().unwrap().ca_pem()).unwrap();
    let channel = endpoint::joining_channel(&cluster.address(1).to_string(), fingerprint).unwrap();
    let status = ControlPlaneClient::new(channel.clone())
        .status(proto::StatusRequest {})
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    let message = status.message();
    let expected = " needs a certificate of this cluster, and the connection came without one";
    assert!(
        message.starts_with("`mosectl status`") && message.ends_with(expected),
        "{message}"
    );
    // Nor can a stranger have the server read for long.
    let request = proto::JoinRequest {
        secret: "x".repeat(1024 * 1024),
        ..Default::default()
    };
    let status = ControlPlaneClient::new(channel.clone())
        .join(request)
        .await
        .unwrap_err();
    assert!(status.message().contains("length limit exceeded"), "{status:?}");
    let vote = RaftClient::new(channel)
        .vote(RaftRequest::default())
        .await
        .unwrap_err();
    assert_eq!(vote.code(), Code::Unauthenticated);
    // A client that knows another authority does not even begin to talk.
    let other = Fingerprint::of_pem(ClusterCa::create().unwrap().ca_pem()).unwrap();
    let channel = endpoint::joining_channel(&cluster.address(1).to_string(), other).unwrap();
    let status = ControlPlaneClient::new(channel)
        .status(proto::StatusRequest {})
        .await
        .unwrap_err();
    let chain = format!("{status:?}");
    assert!(
        chain.contains("its authority is not the one of the token"),
        "{chain}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_opens_nothing() {
    let cluster = Cluster::start_secure(1).await;
    cluster.leader().await;
    let ca = cluster.ca.as_ref().unwrap();
    let now = SystemTime::now();
    let past = Validity {
        not_before: now - Duration::from_secs(60),
        not_after: now - Duration::from_secs(5),
    };
    let expired = ca.issue_for(Role::Admin, "ada", past).unwrap();
    let mut config =
        mosec_wire::control::ClientConfig::new(vec![cluster.address(1).to_string()], Some(expired));
    config.call_timeout = Duration::from_millis(500);
    let client = mosec_wire::control::ControlClient::new(config).unwrap();
    let error = client.status().await.unwrap_err();
    assert!(matches!(error, ControlError::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("CertificateExpired"), "{error}");

    // A connection that was made in time gets no further than the certificate.
    let short = Validity::starting(now, Duration::from_secs(2));
    let short = ca.issue_for(Role::Admin, "ada", short).unwrap();
    let mut service = cluster.service(1, Some(&short));
    service.status(proto::StatusRequest {}).await.unwrap();
    let watch = service.watch_topology(proto::WatchTopologyRequest::default());
    let mut updates = watch.await.unwrap().into_inner();
    assert!(updates.message().await.unwrap().is_some());
    let refused = || async {
        let answer = service.clone().status(proto::StatusRequest {}).await;
        answer.err()
    };
    let status = eventually("the end of the certificate", refused).await;
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unauthenticated, "the certificate of admin/ada has expired")
    );
    // A stream that was opened in time ends with it.
    let rest = tokio::time::timeout(crate::harness::PATIENCE, updates.message()).await;
    assert!(matches!(rest, Ok(Ok(None))), "{rest:?}");
}
