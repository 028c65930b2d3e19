//! Calls that end in a certificate: joining with a token, and renewing.
//!
//! A member that holds the authority's key answers them; the others pass them on to one that does. A use of a token is
//! taken by the leader, through the log, before anything is signed.

use std::time::{Duration, SystemTime};

use mosec_wire::control::{FORWARDED_KEY, JOIN_TRY_TIMEOUT, MAX_MESSAGE_BYTES, proto};
use mosec_wire::tls::{PeerIdentity, Role, SigningRequest, hash_secret};
use tokio::time::Instant;
use tonic::{Code, Request, Response, Status};

use super::tokens::optional_name;
use super::{Api, answer, forward, invalid, origin, unexpected};
use crate::access::{self, Caller};
use crate::authority::Authority;
use crate::raft::handle::ProposeError;
use crate::state::tokens;
use crate::state::{Command, Refusal, Reply, Usage};

/// Joins of strangers at once, at one member: each may cost a round trip to the leader.
pub(crate) const MAX_JOINS: usize = 16;
/// Longest texts and requests of a stranger; real ones are far shorter.
const MAX_TEXT_BYTES: usize = 128;
const MAX_REQUEST_BYTES: usize = 4096;
/// How long another member may take to sign: a write, and the way there.
const SIGNER_TIMEOUT: Duration = Duration::from_secs(6);
/// How long all of them may take: who joins is told what became of each, which it must hear before it gives up here.
const SIGNERS_TIMEOUT: Duration = Duration::from_secs(8);
const _: () = assert!(SIGNERS_TIMEOUT.as_millis() < JOIN_TRY_TIMEOUT.as_millis());

pub(super) async fn join(
    api: &Api,
    request: Request<proto::JoinRequest>,
) -> Result<Response<proto::Certified>, Status> {
    let Ok(_place) = api.joins.try_acquire() else {
        return Err(Status::resource_exhausted(format!(
            "{MAX_JOINS} others are joining here right now"
        )));
    };
    let message = request.get_ref();
    let texts = [
        &message.token,
        &message.secret,
        &message.name,
        &message.fallback_name,
    ];
    if texts
        .into_iter()
        .chain(&message.roles)
        .any(|text| text.len() > MAX_TEXT_BYTES)
        || message.roles.len() > Role::ALL.len()
    {
        return Err(invalid(
            "request",
            format!("a text is longer than {MAX_TEXT_BYTES} bytes"),
        ));
    }
    let signing = signing_request(&message.signing_request)?;
    let Some(authority) = &api.authority else {
        let send = |mut client: forward::Client, request| async move { client.join(request).await };
        return api.have_signed(request, send).await;
    };
    let usage = proto::UseTokenRequest {
        token: message.token.clone(),
        secret_hash: hash_secret(&message.token, &message.secret),
        roles: message.roles.clone(),
        name: message.name.clone(),
        fallback_name: message.fallback_name.clone(),
        key: signing.key_hash(),
    };
    let joined = use_token(api, Request::new(usage)).await?.into_inner();
    let role = joined.role.parse().map_err(|error| invalid("role", error))?;
    let name = mosec_types::NodeId::new(joined.name).map_err(|error| invalid("name", error))?;
    let peer = PeerIdentity { role, name };
    tracing::info!(%peer, token = message.token, "joined");
    sign(authority, &signing, &peer)
}

/// Takes a use of a token, at the leader.
pub(super) async fn use_token(
    api: &Api,
    request: Request<proto::UseTokenRequest>,
) -> Result<Response<proto::UseTokenResponse>, Status> {
    let message = request.get_ref();
    let usage = Usage {
        id: message.token.clone(),
        secret_hash: message.secret_hash.clone(),
        roles: message.roles.clone(),
        name: optional_name(&message.name)?,
        fallback: optional_name(&message.fallback_name)?,
        key: message.key.clone(),
    };
    let now = origin("").at_unix_ms;
    // What is going to be refused takes no place in the log: strangers could fill it. A state that may be old is not
    // trusted with a refusal.
    if tokens::check(&api.model.borrow(), &usage, now).is_err() {
        match api.handle.read_barrier().await {
            Ok(()) => {
                if let Err(refusal) = tokens::check(&api.model.borrow(), &usage, now) {
                    let refusal = Refusal::from(refusal);
                    tracing::info!(%refusal, "a join was refused");
                    return Err(super::refused(&refusal));
                }
            }
            Err(ProposeError::NotLeader { leader }) => return pass_on(api, leader, request).await,
            Err(error) => return Err(forward::failure(error)),
        }
    }
    let command = Command::UseToken {
        // The trail names who joined once that is known.
        origin: origin(&format!("token {}", usage.id)),
        usage: Box::new(usage),
    };
    match api.handle.propose(command.into()).await {
        Err(ProposeError::NotLeader { leader }) => pass_on(api, leader, request).await,
        reply => match answer(reply)? {
            Reply::Joined { peer } => Ok(Response::new(proto::UseTokenResponse {
                role: peer.0.role.name().into(),
                name: peer.0.name.to_string(),
            })),
            other => Err(unexpected(&other)),
        },
    }
}

async fn pass_on(
    api: &Api,
    leader: Option<proto::LeaderInfo>,
    request: Request<proto::UseTokenRequest>,
) -> Result<Response<proto::UseTokenResponse>, Status> {
    let send = |mut client: forward::Client, request| async move { client.use_token(request).await };
    api.forward(leader, request, send).await
}

/// Certifies a new key of the caller.
pub(super) async fn renew(
    api: &Api,
    mut request: Request<proto::RenewRequest>,
) -> Result<Response<proto::Certified>, Status> {
    let peer = match access::caller(&request) {
        Caller::Peer(known)
            if known.peer.role == Role::ControlPlane && !request.get_ref().peer.is_empty() =>
        {
            let peer = request.get_ref().peer.parse();
            peer.map_err(|error: mosec_wire::tls::TlsError| invalid("peer", error))?
        }
        Caller::Peer(known) => known.peer,
        Caller::Stranger | Caller::Unchecked => {
            return Err(Status::failed_precondition(
                "there is nothing to renew: the connection has no certificate",
            ));
        }
    };
    let signing = signing_request(&request.get_ref().signing_request)?;
    let Some(authority) = &api.authority else {
        request.get_mut().peer = peer.to_string();
        let send = |mut client: forward::Client, request| async move { client.renew(request).await };
        return api.have_signed(request, send).await;
    };
    tracing::info!(%peer, "certificate renewed");
    sign(authority, &signing, &peer)
}

fn signing_request(der: &[u8]) -> Result<SigningRequest, Status> {
    if der.len() > MAX_REQUEST_BYTES {
        let problem = format!("expected at most {MAX_REQUEST_BYTES} bytes, found {}", der.len());
        return Err(invalid("signing_request", problem));
    }
    SigningRequest::from_der(der).map_err(|error| invalid("signing_request", error))
}

fn sign(
    authority: &Authority,
    request: &SigningRequest,
    peer: &PeerIdentity,
) -> Result<Response<proto::Certified>, Status> {
    let signed = authority.sign(request, peer, SystemTime::now());
    let cert_pem = signed.map_err(|error| Status::internal(format!("cannot sign for {peer}: {error}")))?;
    Ok(Response::new(proto::Certified {
        ca_pem: authority.ca_pem().to_owned(),
        cert_pem,
    }))
}

/// How long one of so many members may take, of the time that is `left`: silent ones leave to each after them as much.
fn share(left: Duration, members: usize) -> Duration {
    let members = u32::try_from(members).unwrap_or(u32::MAX).max(1);
    SIGNER_TIMEOUT.min(left / members)
}

impl Api {
    /// Has another member answer that holds the authority's key: the first that does, in the order of their numbers.
    async fn have_signed<Q, F, Fut>(
        &self,
        request: Request<Q>,
        send: F,
    ) -> Result<Response<proto::Certified>, Status>
    where
        Q: Clone,
        F: Fn(forward::Client, Request<Q>) -> Fut,
        Fut: Future<Output = Result<Response<proto::Certified>, Status>>,
    {
        let own = self.handle.member;
        if request.metadata().contains_key(FORWARDED_KEY) {
            return Err(Status::unimplemented(format!(
                "member {own} does not hold the authority's key"
            )));
        }
        let message = request.into_inner();
        let mut silent = Vec::new();
        let others = self.handle.peers.others(own);
        let (count, until) = (others.len(), Instant::now() + SIGNERS_TIMEOUT);
        for (asked, (member, address)) in others.into_iter().enumerate() {
            let limit = share(until.saturating_duration_since(Instant::now()), count - asked);
            let channel = self.handle.peers.channel(member, &address);
            let channel = channel.map_err(|error| Status::internal(error.to_string()))?;
            let client = forward::Client::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
            let mut onward = Request::new(message.clone());
            onward.metadata_mut().insert(FORWARDED_KEY, own.into());
            match tokio::time::timeout(limit, send(client, onward)).await {
                Ok(Err(status)) if status.code() == Code::Unimplemented => {}
                Ok(Err(status)) if matches!(status.code(), Code::Unavailable | Code::Unknown) => {
                    silent.push(format!("member {member} at {address}: {}", status.message()));
                }
                Ok(answer) => return answer,
                Err(_) => silent.push(format!("member {member} at {address}: no answer in time")),
            }
        }
        if silent.is_empty() {
            return Err(Status::failed_precondition(
                "no member of the control plane holds the authority's key: start one with --ca DIR",
            ));
        }
        Err(Status::unavailable(format!(
            "no member that can be reached holds the authority's key ({})",
            silent.join("; ")
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silent_members_leave_time_for_those_after_them_and_for_the_answer() {
        assert_eq!(share(SIGNERS_TIMEOUT, 1), SIGNER_TIMEOUT);
        for members in 1..=10_usize {
            let first = share(SIGNERS_TIMEOUT, members);
            let mut left = SIGNERS_TIMEOUT;
            for asked in 0..members {
                let limit = share(left, members - asked);
                assert!(limit >= first, "member {asked} of {members}: {limit:?}");
                left = left.checked_sub(limit).expect("not more than there is");
            }
        }
    }
}
