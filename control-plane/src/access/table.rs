//! The one table of who may make which call, and the decision from it.

use std::time::SystemTime;

use mosec_wire::tls::Role::{self, Admin, Agent, ControlPlane, Deployer, Gateway, Viewer};
use tonic::Status;

use self::May::{Anyone, Only};
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

/// The commands of `mosectl` of which a call may be the first that is refused: a person is told of what they typed. A call
/// does not say which of them that was.
type Commands = &'static [&'static str];

/// Processes alone make the call.
const PROCESSES: Commands = &[];
/// Nobody is refused the call.
const NEVER: Commands = &[];

const CONTROL: &str = "mosec.control.v1.ControlPlane";
const RAFT: &str = "mosec.raft.v1.Raft";

/// One line for each call of each service. A call without a line is refused to everybody, and fails a test.
const TABLE: &[(&str, &str, May, Commands)] = &[
    (CONTROL, "RegisterNode", Only(NODES), PROCESSES),
    (CONTROL, "Heartbeat", Only(NODES), PROCESSES),
    (CONTROL, "Deploy", Only(DEPLOYERS), &["deploy"]),
    (CONTROL, "Rollback", Only(DEPLOYERS), &["rollback"]),
    (
        CONTROL,
        "History",
        Only(VIEWERS),
        &["history", "rollout history", "describe"],
    ),
    (CONTROL, "Delete", Only(DEPLOYERS), &["delete"]),
    (CONTROL, "Promote", Only(DEPLOYERS), &["rollout promote"]),
    (CONTROL, "Abort", Only(DEPLOYERS), &["rollout abort"]),
    (CONTROL, "Scale", Only(DEPLOYERS), &["scale"]),
    (CONTROL, "SetTraffic", Only(DEPLOYERS), &["traffic"]),
    (
        CONTROL,
        "DrainNode",
        Only(ADMINS),
        &["node drain", "node uncordon"],
    ),
    (CONTROL, "RemoveNode", Only(ADMINS), &["node remove"]),
    (CONTROL, "Plan", Only(DEPLOYERS), &["plan"]),
    (CONTROL, "ReportTraffic", Only(GATEWAYS), PROCESSES),
    (CONTROL, "PutBundle", Only(DEPLOYERS), &["deploy"]),
    (CONTROL, "HasBundle", Only(DEPLOYERS), &["deploy"]),
    // Those that run the code, and members that lack it.
    (CONTROL, "GetBundle", Only(NODES), PROCESSES),
    (
        CONTROL,
        "Status",
        Only(VIEWERS),
        &[
            "status",
            "describe",
            "node list",
            "rollout status",
            "rollout promote",
        ],
    ),
    (CONTROL, "WatchTopology", Only(FOLLOWERS), PROCESSES),
    (CONTROL, "Audit", Only(VIEWERS), &["audit"]),
    (CONTROL, "Logs", Only(VIEWERS), &["logs"]),
    (CONTROL, "SendLogs", Only(NODES), PROCESSES),
    (CONTROL, "Backup", Only(ADMINS), &["backup"]),
    (CONTROL, "CreateToken", Only(ADMINS), &["token create"]),
    (CONTROL, "ListTokens", Only(ADMINS), &["token list"]),
    (CONTROL, "RevokeToken", Only(ADMINS), &["token revoke"]),
    (CONTROL, "Join", Anyone, NEVER),
    (CONTROL, "UseToken", Only(MEMBERS), PROCESSES),
    (CONTROL, "Renew", Only(ALL), &["login --renew"]),
    (
        CONTROL,
        "ListMembers",
        Only(VIEWERS),
        &["cluster status", "cluster remove"],
    ),
    (CONTROL, "AddMember", Only(ADMINS), &["cluster add"]),
    (CONTROL, "RemoveMember", Only(ADMINS), &["cluster remove"]),
    (RAFT, "AppendEntries", Only(MEMBERS), PROCESSES),
    (RAFT, "Vote", Only(MEMBERS), PROCESSES),
    (RAFT, "InstallSnapshot", Only(MEMBERS), PROCESSES),
    // Of people, those who restore a member from a backup.
    (RAFT, "Describe", Only(ADMINS), &["restore"]),
];

/// Whether `caller` may make the call at `path`, `/<package>.<service>/<call>`.
pub(crate) fn check(caller: &Caller, path: &str, now: SystemTime) -> Result<(), Status> {
    let known = match caller {
        Caller::Unchecked => return Ok(()),
        Caller::Peer(known) => Some(known),
        Caller::Stranger => None,
    };
    let line = line(path);
    let (may, commands) = line.map_or((None, PROCESSES), |(may, commands)| (Some(may), commands));
    match (may, known) {
        (Some(Anyone), _) => Ok(()),
        (_, None) => Err(Status::unauthenticated(format!(
            "{} needs a certificate of this cluster, and the connection came without one",
            named(path, commands)
        ))),
        // Connections outlive certificates; who has a new one makes a new connection.
        (_, Some(known)) if now >= known.not_after => Err(Status::unauthenticated(format!(
            "the certificate of {} has expired",
            known.peer
        ))),
        (Some(Only(roles)), Some(known)) if roles.contains(&known.peer.role) => Ok(()),
        (Some(Only(roles)), Some(known)) => Err(Status::permission_denied(format!(
            "{} may not {} {}: its role is {}, expected {}",
            known.peer,
            if commands.is_empty() { "call" } else { "run" },
            named(path, commands),
            known.peer.role,
            in_words(roles)
        ))),
        (None, Some(known)) => Err(Status::permission_denied(format!(
            "{} may not call {path}: nobody may, as it is not known here",
            known.peer
        ))),
    }
}

/// Who may make the call at `path`, and by which commands.
fn line(path: &str) -> Option<(May, Commands)> {
    let (service, call) = path.strip_prefix('/')?.split_once('/')?;
    let mut lines = TABLE.iter();
    let found = lines.find(|(known, name, ..)| *known == service && *name == call);
    found.map(|(.., may, commands)| (*may, *commands))
}

/// A call by its commands, or by its own name where people have none for it. Logs have the path.
fn named(path: &str, commands: Commands) -> String {
    let commands: Vec<_> = commands.iter().map(|name| format!("`mosectl {name}`")).collect();
    match &commands[..] {
        [] => path.rsplit('/').next().unwrap_or(path).to_owned(),
        [one] => one.clone(),
        [some @ .., last] => format!("{} or {last}", some.join(", ")),
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
        let path = |(service, call, ..): &(&str, &str, May, Commands)| format!("/{service}/{call}");
        let lines: BTreeSet<_> = TABLE.iter().map(path).collect();
        assert_eq!(lines.len(), TABLE.len(), "a call has two lines");
        assert_eq!(
            lines,
            CALLS.iter().map(ToString::to_string).collect(),
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
                        text.starts_with(&format!("{role}/x may not "))
                            && text.contains(&format!(": its role is {role}, expected ")),
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

    /// All but the topology, which nobody follows by a command.
    #[test]
    fn every_call_of_people_has_its_commands() {
        let is_theirs = |may: &May| match may {
            Anyone => false,
            Only(roles) => [Viewer, Deployer, Admin].iter().any(|role| roles.contains(role)),
        };
        for (_, call, may, commands) in TABLE {
            let expected = is_theirs(may) && *call != "WatchTopology";
            assert_eq!(!commands.is_empty(), expected, "{call}");
        }
    }

    #[test]
    fn a_refusal_names_what_was_typed() {
        let refused = |caller: &Caller, call: &str| {
            let path = format!("/mosec.{call}");
            check(caller, &path, at(1)).unwrap_err().message().to_owned()
        };
        assert_eq!(
            refused(&peer(Viewer), "control.v1.ControlPlane/CreateToken"),
            "viewer/x may not run `mosectl token create`: its role is viewer, expected admin"
        );
        assert_eq!(
            refused(&peer(Viewer), "control.v1.ControlPlane/DrainNode"),
            "viewer/x may not run `mosectl node drain` or `mosectl node uncordon`: its role is viewer, expected admin"
        );
        assert_eq!(
            refused(&Caller::Stranger, "control.v1.ControlPlane/Status"),
            "`mosectl status`, `mosectl describe`, `mosectl node list`, `mosectl rollout status` or \
             `mosectl rollout promote` needs a certificate of this cluster, and the connection came without one"
        );
        // Nobody types what processes call.
        assert_eq!(
            refused(&peer(Admin), "raft.v1.Raft/Vote"),
            "admin/x may not call Vote: its role is admin, expected control-plane"
        );
    }
}
