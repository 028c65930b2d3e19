//! The one table of who may make which call, and the decision from it.

use std::time::SystemTime;

use mosec_wire::tls::Role::{self, Admin, Agent, ControlPlane, Deployer, Gateway, Viewer};
use tonic::Status;

use super::Caller;

// Members are in every list of people's calls: they forward them to the leader, after they have checked the caller.
/// Processes that join and leave by themselves.
const NODES: &[Role] = &[Agent, ControlPlane];
const MEMBERS: &[Role] = &[ControlPlane];
const GATEWAYS: &[Role] = &[Gateway, ControlPlane];
/// Whoever looks.
const VIEWERS: &[Role] = &[Viewer, Deployer, Admin, ControlPlane];
/// Whoever follows the topology: what serves, and whoever looks.
const FOLLOWERS: &[Role] = &[Gateway, Agent, Viewer, Deployer, Admin, ControlPlane];
/// Whoever changes what runs.
const DEPLOYERS: &[Role] = &[Deployer, Admin, ControlPlane];
/// Whoever changes who belongs to the cluster.
const ADMINS: &[Role] = &[Admin, ControlPlane];
/// Whoever has a certificate.
const ALL: &[Role] = &Role::ALL;

/// Who may make a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum May {
    /// Even without a certificate.
    Anyone,
    Only(&'static [Role]),
}

/// One line for each call of each service. A call without a line is refused to everybody, and fails a test.
const TABLE: &[(&str, May)] = &[
    ("/mosec.control.v1.ControlPlane/RegisterNode", May::Only(NODES)),
    ("/mosec.control.v1.ControlPlane/Heartbeat", May::Only(NODES)),
    ("/mosec.control.v1.ControlPlane/Deploy", May::Only(DEPLOYERS)),
    ("/mosec.control.v1.ControlPlane/Rollback", May::Only(DEPLOYERS)),
    ("/mosec.control.v1.ControlPlane/History", May::Only(VIEWERS)),
    ("/mosec.control.v1.ControlPlane/Delete", May::Only(DEPLOYERS)),
    ("/mosec.control.v1.ControlPlane/Promote", May::Only(DEPLOYERS)),
    ("/mosec.control.v1.ControlPlane/Abort", May::Only(DEPLOYERS)),
    ("/mosec.control.v1.ControlPlane/Scale", May::Only(DEPLOYERS)),
    ("/mosec.control.v1.ControlPlane/SetTraffic", May::Only(DEPLOYERS)),
    ("/mosec.control.v1.ControlPlane/DrainNode", May::Only(ADMINS)),
    ("/mosec.control.v1.ControlPlane/RemoveNode", May::Only(ADMINS)),
    ("/mosec.control.v1.ControlPlane/Plan", May::Only(DEPLOYERS)),
    (
        "/mosec.control.v1.ControlPlane/ReportTraffic",
        May::Only(GATEWAYS),
    ),
    ("/mosec.control.v1.ControlPlane/PutBundle", May::Only(DEPLOYERS)),
    ("/mosec.control.v1.ControlPlane/HasBundle", May::Only(DEPLOYERS)),
    // Those that run the code, and members that lack it.
    ("/mosec.control.v1.ControlPlane/GetBundle", May::Only(NODES)),
    ("/mosec.control.v1.ControlPlane/Status", May::Only(VIEWERS)),
    (
        "/mosec.control.v1.ControlPlane/WatchTopology",
        May::Only(FOLLOWERS),
    ),
    ("/mosec.control.v1.ControlPlane/Audit", May::Only(VIEWERS)),
    ("/mosec.control.v1.ControlPlane/Logs", May::Only(VIEWERS)),
    ("/mosec.control.v1.ControlPlane/SendLogs", May::Only(NODES)),
    ("/mosec.control.v1.ControlPlane/Backup", May::Only(ADMINS)),
    ("/mosec.control.v1.ControlPlane/CreateToken", May::Only(ADMINS)),
    ("/mosec.control.v1.ControlPlane/ListTokens", May::Only(ADMINS)),
    ("/mosec.control.v1.ControlPlane/RevokeToken", May::Only(ADMINS)),
    ("/mosec.control.v1.ControlPlane/Join", May::Anyone),
    ("/mosec.control.v1.ControlPlane/UseToken", May::Only(MEMBERS)),
    ("/mosec.control.v1.ControlPlane/Renew", May::Only(ALL)),
    ("/mosec.control.v1.ControlPlane/ListMembers", May::Only(VIEWERS)),
    ("/mosec.control.v1.ControlPlane/AddMember", May::Only(ADMINS)),
    ("/mosec.control.v1.ControlPlane/RemoveMember", May::Only(ADMINS)),
    ("/mosec.raft.v1.Raft/AppendEntries", May::Only(MEMBERS)),
    ("/mosec.raft.v1.Raft/Vote", May::Only(MEMBERS)),
    ("/mosec.raft.v1.Raft/InstallSnapshot", May::Only(MEMBERS)),
    // Of people, those who restore a member from a backup.
    ("/mosec.raft.v1.Raft/Describe", May::Only(ADMINS)),
];

/// Whether `caller` may make the call at `path`, `/<package>.<service>/<call>`.
pub(crate) fn check(caller: &Caller, path: &str, now: SystemTime) -> Result<(), Status> {
    let call = path.rsplit('/').next().unwrap_or(path);
    let known = match caller {
        Caller::Unchecked => return Ok(()),
        Caller::Peer(known) => Some(known),
        Caller::Stranger => None,
    };
    let may = TABLE
        .iter()
        .find(|(known, _)| *known == path)
        .map(|(_, may)| *may);
    match (may, known) {
        (Some(May::Anyone), _) => Ok(()),
        (_, None) => Err(Status::unauthenticated(format!(
            "{call} needs a certificate of this cluster, and the connection came without one"
        ))),
        // Connections outlive certificates; who has a new one makes a new connection.
        (_, Some(known)) if now >= known.not_after => Err(Status::unauthenticated(format!(
            "the certificate of {} has expired",
            known.peer
        ))),
        (Some(May::Only(roles)), Some(known)) if roles.contains(&known.peer.role) => Ok(()),
        (Some(May::Only(roles)), Some(known)) => Err(Status::permission_denied(format!(
            "{} may not call {call}: its role is {}, expected {}",
            known.peer,
            known.peer.role,
            in_words(roles)
        ))),
        (None, Some(known)) => Err(Status::permission_denied(format!(
            "{} may not call {path}: nobody may, as it is not known here",
            known.peer
        ))),
    }
}

/// The roles for whom a call is: members, which forward it, only where there is nobody else.
fn in_words(roles: &[Role]) -> String {
    let named = roles
        .iter()
        .filter(|role| **role != ControlPlane || roles.len() == 1);
    let names: Vec<_> = named.map(|role| role.name()).collect();
    names.join(" or ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use mosec_wire::control::CALLS;
    use mosec_wire::tls::PeerIdentity;
    use tonic::Code;

    use super::*;
    use crate::access::Known;
    use crate::fixtures::node_id;

    fn peer(role: Role) -> Caller {
        Caller::Peer(Box::new(Known {
            peer: PeerIdentity {
                role,
                name: node_id("x"),
            },
            not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(100),
        }))
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn every_call_has_one_line_and_every_line_a_call() {
        let lines: BTreeSet<_> = TABLE.iter().map(|(call, _)| *call).collect();
        assert_eq!(lines.len(), TABLE.len(), "a call has two lines");
        assert_eq!(
            lines,
            CALLS.iter().copied().collect(),
            "who may make each call stands in the table"
        );
    }

    /// What each role may do, written down a second time: as people think of it.
    #[test]
    fn each_role_may_do_its_own_part() {
        let views = [
            "History",
            "Status",
            "WatchTopology",
            "Audit",
            "Logs",
            "ListMembers",
        ];
        let deploys = [
            "Deploy",
            "Rollback",
            "Delete",
            "Promote",
            "Abort",
            "Scale",
            "SetTraffic",
            "Plan",
            "PutBundle",
            "HasBundle",
        ];
        let nodes = ["RegisterNode", "Heartbeat", "GetBundle", "SendLogs"];
        let members = ["AppendEntries", "Vote", "InstallSnapshot", "UseToken"];
        for path in CALLS {
            let call = path.rsplit('/').next().unwrap();
            for role in Role::ALL {
                let expected = match role {
                    _ if ["Join", "Renew"].contains(&call) => true,
                    ControlPlane => true,
                    Gateway => ["WatchTopology", "ReportTraffic"].contains(&call),
                    Agent => call == "WatchTopology" || nodes.contains(&call),
                    Viewer => views.contains(&call),
                    Deployer => views.contains(&call) || deploys.contains(&call),
                    Admin => !nodes.contains(&call) && !members.contains(&call) && call != "ReportTraffic",
                };
                let found = check(&peer(role), path, at(1));
                assert_eq!(found.is_ok(), expected, "{role} {call}: {found:?}");
                if let Err(status) = found {
                    assert_eq!(status.code(), Code::PermissionDenied);
                    let text = status.message();
                    assert!(
                        text.starts_with(&format!(
                            "{role}/x may not call {call}: its role is {role}, expected "
                        )),
                        "{text}"
                    );
                }
            }
            match check(&Caller::Stranger, path, at(1)) {
                Ok(()) => assert_eq!(call, "Join", "the one call without a certificate"),
                Err(status) => assert_eq!(status.code(), Code::Unauthenticated, "{path}"),
            }
            assert!(check(&Caller::Unchecked, path, at(1)).is_ok());
            if call != "Join" {
                let late = check(&peer(Admin), path, at(100)).unwrap_err();
                assert_eq!(
                    (late.code(), late.message()),
                    (Code::Unauthenticated, "the certificate of admin/x has expired")
                );
            }
        }
    }

    #[test]
    fn what_is_not_in_the_table_is_refused() {
        let status = check(&peer(Admin), "/mosec.control.v1.ControlPlane/Nuke", at(1)).unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied);
        let status = check(&Caller::Stranger, "/grpc.reflection.v1/Info", at(1)).unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
    }

    #[test]
    fn a_refusal_names_everything() {
        let status = check(&peer(Viewer), "/mosec.control.v1.ControlPlane/Deploy", at(1)).unwrap_err();
        assert_eq!(
            status.message(),
            "viewer/x may not call Deploy: its role is viewer, expected deployer or admin"
        );
    }
}
