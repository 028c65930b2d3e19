//! What a member says of itself to others and to admins.

use mosec_wire::control::endpoint;
use mosec_wire::control::raft::raft_client::RaftClient;
use mosec_wire::control::raft::{DescribeReply, DescribeRequest};
use mosec_wire::tls::{Identity, Role};
use tonic::{Code, Status};

use crate::harness::{Cluster, eventually};

async fn describe(
    cluster: &Cluster,
    member: u64,
    identity: Option<&Identity>,
) -> Result<DescribeReply, Status> {
    let channel = endpoint::channel(&cluster.address(member).to_string(), identity).unwrap();
    let reply = RaftClient::new(channel).describe(DescribeRequest {}).await?;
    Ok(reply.into_inner())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_member_says_where_it_stands() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    for member in 1..=3 {
        // What it has of the log is what the leader has told it so far.
        let founded =
            |reply: &DescribeReply| reply.leader == Some(leader) && reply.level && reply.last_log.is_some();
        let reply = eventually("a member that knows the leader", || async {
            let reply = describe(&cluster, member, None).await.unwrap();
            founded(&reply).then_some(reply)
        })
        .await;
        assert_eq!((reply.cluster_id.as_str(), reply.member), ("test", member));
        assert_eq!(reply.build, env!("CARGO_PKG_VERSION"));
        assert!(reply.formats.is_some_and(|formats| formats.min <= formats.max));
        let (vote, last) = (reply.vote.unwrap(), reply.last_log.unwrap());
        assert_eq!((vote.leader, vote.committed), (leader, true));
        assert!(vote.term >= last.term);
        assert!(
            reply
                .last_applied
                .is_none_or(|applied| applied.index <= last.index)
        );
        let membership = reply.membership.unwrap();
        assert_eq!(membership.log_id.unwrap().index, 0);
        let addresses: Vec<_> = membership
            .members
            .into_iter()
            .map(|m| (m.id, m.address))
            .collect();
        let expected: Vec<_> = (1..=3).map(|id| (id, cluster.address(id).to_string())).collect();
        assert_eq!(addresses, expected);
        assert_eq!(membership.voters.len(), 1);
        assert_eq!(membership.voters[0].members, [1, 2, 3]);
        assert!(membership.learners.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn admins_and_members_may_ask_nobody_else() {
    let cluster = Cluster::start_secure(1).await;
    let ca = cluster.ca.as_ref().unwrap();
    for role in Role::ALL {
        let answer = describe(&cluster, 1, Some(&ca.issue(role, "x").unwrap())).await;
        match role {
            Role::Admin | Role::ControlPlane => assert_eq!(answer.unwrap().member, 1),
            _ => assert_eq!(answer.unwrap_err().code(), Code::PermissionDenied),
        }
    }
}
