//! Reports of gateways, and of nodes that cannot be reached.

use mosec_types::reach::MAX_UNREACHABLE;
use mosec_wire::control::proto;
use mosec_wire::tls::{Identity, Role};

use crate::harness::{Cluster, eventually};

fn report(nodes: usize, address: &str) -> proto::TrafficReport {
    let found = proto::UnreachableNode {
        node: "a".into(),
        address: address.into(),
        cause: "no answer".into(),
    };
    proto::TrafficReport {
        gateway: "0123456789abcdef".into(),
        name: "somebody-else".into(),
        unreachable: vec![found; nodes],
        ..Default::default()
    }
}

/// Makes a member take a gateway's report, again where the leader has changed, until the status is as wanted.
async fn tell(
    cluster: &Cluster,
    [member, leader]: [u64; 2],
    gateway: &Identity,
    report: proto::TrafficReport,
    is_wanted: impl Fn(&proto::StatusResponse) -> bool,
) {
    eventually("the report is taken", async || {
        let mut service = cluster.service(member, Some(gateway));
        service.report_traffic(report.clone()).await.ok()?;
        let status = cluster.client(&[leader]).status().await.ok()?;
        is_wanted(&status).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_reach_a_node_is_called_as_its_certificate_says() {
    let cluster = Cluster::start_secure(3).await;
    let leader = cluster.leader().await;
    let follower = cluster.followers().await[0];
    let issue = |role, name| cluster.ca.as_ref().unwrap().issue(role, name).unwrap();
    let (gateway, agent) = (issue(Role::Gateway, "g"), issue(Role::Agent, "a"));
    let node = proto::RegisterNodeRequest {
        id: "a".into(),
        incarnation: 1,
        address: "a:1".into(),
        ..Default::default()
    };
    eventually("the node is registered", async || {
        let mut service = cluster.service(leader, Some(&agent));
        service.register_node(node.clone()).await.ok()
    })
    .await;

    // A leader that changes forgets what it was told; gateways say it again each second.
    let is_told = async |member, report: proto::TrafficReport, expected: &[proto::UnreachableFrom]| {
        tell(&cluster, [member, leader], &gateway, report, |status| {
            let node = &status.nodes[0];
            assert_eq!(node.unreachable.len(), node.unreachable_from as usize);
            node.unreachable == expected
        })
        .await;
    };
    let expected = [proto::UnreachableFrom {
        from: "gateway/g".into(),
        address: "a:1".into(),
        cause: "no answer".into(),
    }];
    // The follower hands the report on, with the name of who made it.
    for member in [leader, follower] {
        is_told(member, report(1, "a:1"), &expected).await;
        // About a place where it is not, and about nothing.
        is_told(member, report(1, "b:1"), &[]).await;
        is_told(member, report(0, ""), &[]).await;
        // What is wrong with this does not cost the rest of the report, nor does what is too much.
        let mut wrong = report(MAX_UNREACHABLE + 1, "a:1");
        wrong.unreachable[0].node = "no name".into();
        is_told(member, wrong, &expected).await;
        is_told(member, report(0, ""), &[]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_are_listed_as_their_certificates_call_them() {
    let cluster = Cluster::start_secure(3).await;
    let leader = cluster.leader().await;
    let follower = cluster.followers().await[0];
    let gateway = cluster.ca.as_ref().unwrap().issue(Role::Gateway, "g").unwrap();
    let is_told = async |member, report: proto::TrafficReport, expected: &[(&str, &str)]| {
        tell(&cluster, [member, leader], &gateway, report, |status| {
            let gateways = status.gateways.iter();
            let found = gateways.map(|gateway| (gateway.name.as_str(), gateway.build.as_str()));
            found.eq(expected.iter().copied())
        })
        .await;
    };
    let built = |build: &str| proto::TrafficReport {
        build: Some(build.into()),
        ..report(0, "")
    };
    for member in [leader, follower] {
        // One that does not say what it is reports only now and then.
        is_told(member, report(0, ""), &[]).await;
        is_told(member, built("0.9.0"), &[("g", "0.9.0")]).await;
        is_told(
            member,
            proto::TrafficReport {
                ends: true,
                ..built("0.9.0")
            },
            &[],
        )
        .await;
    }
    let mut service = cluster.service(leader, Some(&gateway));
    let refused = service.report_traffic(built(&"9".repeat(65))).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    assert_eq!(refused.message(), "build: expected at most 64 bytes, found 65");
}
