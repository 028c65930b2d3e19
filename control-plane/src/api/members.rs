//! Who belongs to the control plane, and changes of it.

use std::sync::Arc;
use std::time::Duration;

use mosec_wire::control::{FORWARDED_KEY, port_of, proto};
use openraft::{BasicNode, Membership};
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::{Request, Response, Status};

use super::{Api, answer, forward, invalid, origin};
use crate::access;
use crate::bundles::Bundles;
use crate::raft::MemberId;
use crate::raft::describe::{Description, describe_all};
use crate::raft::handle::ProposeError;
use crate::raft::members::{ChangeError, Code, Progress, next_number};
use crate::state::{Command, Model};

/// Longest address of a member.
const MAX_ADDRESS_BYTES: usize = 256;

/// How long the leader may take to ask all members, which takes it a second where one is silent. A client that asked has
/// as much again.
const LEADER_PATIENCE: Duration = Duration::from_millis(1500);

/// Tells which of the bundles that revisions name a member lacks.
#[derive(Clone)]
pub(crate) struct MissingBundles {
    pub(crate) bundles: Bundles,
    pub(crate) model: watch::Receiver<Arc<Model>>,
}

impl Code for MissingBundles {
    async fn lacking(&self, member: MemberId, address: &str) -> Result<usize, String> {
        let wanted = self.model.borrow().bundles();
        let missing = self.bundles.missing(member, address, &wanted).await;
        missing.map_err(|status| status.message().to_owned())
    }
}

/// Asks every member where it stands: the leader does, who knows best who they are, and where there is none that answers,
/// whoever was called.
pub(super) async fn list(
    api: &Api,
    request: Request<proto::ListMembersRequest>,
) -> proto::ListMembersResponse {
    let is_forwarded = request.metadata().contains_key(FORWARDED_KEY);
    let leader = api
        .handle
        .leader()
        .filter(|leader| leader.id != api.handle.member && !is_forwarded);
    if leader.is_some() {
        let send = |mut client: forward::Client, request| async move { client.list_members(request).await };
        if let Ok(Ok(told)) = timeout(LEADER_PATIENCE, api.forward(leader, request, send)).await {
            return told.into_inner();
        }
    }
    ask_all(api).await
}

async fn ask_all(api: &Api) -> proto::ListMembersResponse {
    let members = api.handle.peers.all();
    let mut told = describe_all(&api.members.asker, &api.cluster_id, members.clone()).await;
    let membership = api.handle.peers.membership();
    let metrics = api.handle.raft.metrics();
    let metrics = metrics.borrow();
    proto::ListMembersResponse {
        cluster_id: api.cluster_id.clone(),
        answered_by: api.handle.member,
        leader: metrics.current_leader,
        term: metrics.current_term,
        next: next_number(&membership, &api.model.borrow().retired_members),
        changing: membership.get_joint_config().len() > 1,
        members: members
            .into_iter()
            .filter_map(|(member, address)| Some(record(&membership, member, address, told.remove(&member)?)))
            .collect(),
    }
}

fn record(
    membership: &Membership<MemberId, BasicNode>,
    member: MemberId,
    address: String,
    told: Result<Description, String>,
) -> proto::MemberRecord {
    let index = |id: Option<crate::raft::LogId>| id.map_or(0, |id| id.index);
    let (report, problem) = match told {
        Ok(told) => {
            let report = proto::MemberReport {
                last_log: index(told.position.last_log_id),
                last_applied: index(told.last_applied),
                build: told.build,
                level: told.is_level,
                signs: told.signs,
            };
            (Some(report), String::new())
        }
        Err(problem) => (None, problem),
    };
    proto::MemberRecord {
        id: member,
        address,
        voter: membership.voter_ids().any(|voter| voter == member),
        report,
        problem,
    }
}

pub(super) async fn add(
    api: &Api,
    mut request: Request<proto::AddMemberRequest>,
) -> Result<Response<proto::MemberChange>, Status> {
    let by = access::asked_by(&request, &request.get_ref().by);
    let (member, address) = (request.get_ref().member, request.get_ref().address.clone());
    number(member)?;
    check_address(&address)?;
    let configured = api.handle.peers.configured(member);
    if let Some(configured) = configured.filter(|configured| *configured != address) {
        return Err(Status::failed_precondition(format!(
            "member {member} is at {configured} by --peers of member {}: take another number",
            api.handle.member
        )));
    }
    let command = Command::AddMember {
        member,
        address: address.clone(),
        origin: origin(&by),
    };
    request.get_mut().by = by;
    match api
        .members
        .add(member, &address, async || note(api, command).await)
        .await
    {
        Err(Failure::NotLeader(leader)) => {
            let send = |mut client: forward::Client, request| async move { client.add_member(request).await };
            api.forward(leader, request, send).await
        }
        Err(Failure::Status(status)) => Err(status),
        Ok(progress) => Ok(Response::new(progress.into())),
    }
}

pub(super) async fn remove(
    api: &Api,
    mut request: Request<proto::RemoveMemberRequest>,
) -> Result<Response<proto::MemberChange>, Status> {
    let by = access::asked_by(&request, &request.get_ref().by);
    let member = request.get_ref().member;
    number(member)?;
    let command = Command::RemoveMember {
        member,
        origin: origin(&by),
    };
    request.get_mut().by = by;
    match api
        .members
        .remove(member, async || note(api, command).await)
        .await
    {
        Err(Failure::NotLeader(leader)) => {
            let send =
                |mut client: forward::Client, request| async move { client.remove_member(request).await };
            api.forward(leader, request, send).await
        }
        Err(Failure::Status(status)) => Err(status),
        Ok(progress) => Ok(Response::new(progress.into())),
    }
}

/// Puts it into the audit trail who changes the members. The change itself is an entry of Raft's own.
async fn note(api: &Api, command: Command) -> Result<(), Failure> {
    let noted = api.handle.propose(command.into()).await;
    if let Err(error @ ProposeError::Format { .. }) = &noted {
        // Those who keep an earlier trail would have to keep none. The change itself does not depend on it.
        tracing::info!(%error, "who changes the members is not in the audit trail");
        return Ok(());
    }
    answer(noted).map(drop).map_err(Failure::Status)
}

/// Why there is no progress, or who can make some.
enum Failure {
    NotLeader(Option<proto::LeaderInfo>),
    Status(Status),
}

impl From<ChangeError> for Failure {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::Propose(ProposeError::NotLeader { leader }) => Self::NotLeader(leader),
            ChangeError::Propose(error) => Self::Status(forward::failure(error)),
            ChangeError::Refused(refusal) => Self::Status(Status::failed_precondition(refusal.to_string())),
        }
    }
}

impl From<Progress> for proto::MemberChange {
    fn from(progress: Progress) -> Self {
        match progress {
            Progress::Done => Self {
                done: true,
                waits_for: String::new(),
            },
            Progress::Waits(waits_for) => Self {
                done: false,
                waits_for,
            },
        }
    }
}

fn number(member: MemberId) -> Result<(), Status> {
    match member {
        0 => Err(invalid("member", "expected a number from 1, found 0")),
        _ => Ok(()),
    }
}

fn check_address(address: &str) -> Result<(), Status> {
    match port_of(address) {
        Ok(_) if address.len() <= MAX_ADDRESS_BYTES => Ok(()),
        _ => Err(invalid(
            "address",
            format!("expected host:port of at most {MAX_ADDRESS_BYTES} bytes, found {address:?}"),
        )),
    }
}
