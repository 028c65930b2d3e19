//! Sees to it that a restored log wins over nothing that lives.
//!
//! A member that still has its disk knows what was acknowledged after the backup. Two control planes with one name, or one
//! whose members remember different pasts, would give numbers away twice and take back what they have promised.

use std::collections::BTreeMap;
use std::time::Duration;

use mosec_wire::control::endpoint;
use mosec_wire::control::raft::raft_client::RaftClient;
use mosec_wire::control::raft::{DescribeReply, DescribeRequest};
use mosec_wire::tls::Identity;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::raft::{LogId, MemberId};

/// How long a member may take to be reached, and to answer: far longer than on any network where a cluster could live.
const ASK_FOR: Duration = Duration::from_secs(3);

/// Why a backup must not be restored.
#[derive(Debug, thiserror::Error)]
pub enum LivingError {
    #[error(
        "member {member} at {address} serves this cluster: a member without its disk is started empty and filled by the \
         others; only where all of them are stopped may a backup take their place"
    )]
    Serves { member: MemberId, address: String },
    #[error(
        "member {member} of cluster {cluster:?} answers at {address}, which is said to be member {expected}'s"
    )]
    Other {
        expected: MemberId,
        address: String,
        member: MemberId,
        cluster: String,
    },
    #[error(
        "{address} of member {member} answers and cannot be asked whether it serves this cluster: {problem}"
    )]
    Unknown {
        member: MemberId,
        address: String,
        problem: String,
    },
}

/// Refuses while any of `peers` lives and knows more than the backup, whose log goes up to `restored`.
pub async fn refuse_living(
    peers: &BTreeMap<MemberId, String>,
    cluster_id: &str,
    restored: LogId,
    identity: Option<&Identity>,
) -> Result<(), LivingError> {
    for (&expected, address) in peers {
        let found = match describe(address, identity).await {
            // Nobody is there. What is merely out of reach is for the operator to know.
            None => continue,
            Some(Ok(found)) => found,
            Some(Err(problem)) => {
                return Err(LivingError::Unknown {
                    member: expected,
                    address: address.clone(),
                    problem,
                });
            }
        };
        if found.cluster_id != cluster_id || found.member != expected {
            return Err(LivingError::Other {
                expected,
                address: address.clone(),
                member: found.member,
                cluster: found.cluster_id,
            });
        }
        if knows_more(&found, restored) {
            return Err(LivingError::Serves {
                member: expected,
                address: address.clone(),
            });
        }
    }
    Ok(())
}

/// An empty member knows nothing, and one that was just restored from the same backup no more than that.
fn knows_more(found: &DescribeReply, restored: LogId) -> bool {
    found
        .last_log
        .is_some_and(|last| (last.term, last.index) != (restored.leader_id.term, restored.index))
}

/// What the member at an address says of itself; `None` where nobody listens.
async fn describe(address: &str, identity: Option<&Identity>) -> Option<Result<DescribeReply, String>> {
    match timeout(ASK_FOR, TcpStream::connect(address)).await {
        Ok(Ok(_)) => {}
        Ok(Err(_)) | Err(_) => return None,
    }
    let asked = async {
        let channel = endpoint::channel(address, identity).map_err(|error| error.to_string())?;
        let reply = RaftClient::new(channel).describe(DescribeRequest {}).await;
        reply
            .map(tonic::Response::into_inner)
            .map_err(|status| status.message().to_owned())
    };
    let answer = timeout(ASK_FOR, asked).await;
    Some(answer.unwrap_or_else(|_| Err(format!("no answer within {ASK_FOR:?}"))))
}

#[cfg(test)]
mod tests {
    use mosec_wire::control::raft::LogId as Message;
    use openraft::CommittedLeaderId;

    use super::*;

    #[test]
    fn who_has_what_was_restored_knows_no_more() {
        let restored = LogId::new(CommittedLeaderId::new(9, 0), 100);
        let has = |last_log| DescribeReply {
            last_log,
            ..Default::default()
        };
        let at = |term, index| {
            Some(Message {
                term,
                leader: 0,
                index,
            })
        };
        assert!(!knows_more(&has(None), restored));
        assert!(!knows_more(&has(at(9, 100)), restored));
        for other in [at(9, 101), at(10, 100), at(3, 7)] {
            assert!(knows_more(&has(other), restored), "{other:?}");
        }
    }

    #[tokio::test]
    async fn nobody_is_there_where_nobody_listens() {
        let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = free.local_addr().unwrap().to_string();
        drop(free);
        let restored = LogId::new(CommittedLeaderId::new(9, 0), 100);
        let peers = BTreeMap::from([(1, address)]);
        refuse_living(&peers, "c", restored, None).await.unwrap();
        // Something else than a member.
        let other = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peers = BTreeMap::from([(2, other.local_addr().unwrap().to_string())]);
        tokio::spawn(async move { while other.accept().await.is_ok() {} });
        let error = refuse_living(&peers, "c", restored, None).await.unwrap_err();
        assert!(matches!(error, LivingError::Unknown { member: 2, .. }), "{error}");
    }
}
