//! Who gets in, and who may do what.

use mosec_types::Topology;
use mosec_wire::control::raft::raft_client::RaftClient;
use mosec_wire::control::raft::{Addressing, RaftRequest};
use mosec_wire::control::{endpoint, proto};
use mosec_wire::tls::{ClusterCa, Identity, Role};
use tonic::Code;

use crate::harness::{Cluster, Watch, numbered, pipeline};

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
    let foreign = ClusterCa::create().unwrap().issue(Role::Operator, "eve").unwrap();
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
            Role::Operator,
            "test",
            1,
            Code::PermissionDenied,
            "a operator may not do this",
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
