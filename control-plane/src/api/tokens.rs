//! Calls that make, list and end join tokens.

use mosec_types::NodeId;
use mosec_wire::control::proto;
use mosec_wire::tls::Role;
use tonic::{Request, Response, Status};

use super::{Api, answer, forward, invalid, origin, unexpected};
use crate::access;
use crate::raft::handle::ProposeError;
use crate::state::tokens::{MAX_USES, Token};
use crate::state::{Command, NewToken, Reply, TokenProblem};

/// Longest life of a token: a month covers the delivery of hosts, and one that leaks is dead some day.
const MAX_TTL_MS: u64 = 30 * 24 * 60 * 60 * 1000;
/// Hexadecimal digits of a token's id and of SHA-256.
const ID_DIGITS: usize = 12;
const HASH_DIGITS: usize = 64;

pub(super) async fn create(
    api: &Api,
    mut request: Request<proto::CreateTokenRequest>,
) -> Result<Response<proto::CreateTokenResponse>, Status> {
    let by = access::asked_by(&request, &request.get_ref().by);
    let origin = origin(&by);
    let token = new_token(request.get_ref(), origin.at_unix_ms)?;
    let expires_at_unix_ms = token.expires_at_unix_ms;
    request.get_mut().by = by;
    let command = Command::CreateToken {
        token: Box::new(token),
        origin,
    };
    match api.handle.propose(command.into()).await {
        Err(ProposeError::NotLeader { leader }) => {
            let send =
                |mut client: forward::Client, request| async move { client.create_token(request).await };
            api.forward(leader, request, send).await
        }
        reply => match answer(reply)? {
            Reply::Done { .. } => Ok(Response::new(proto::CreateTokenResponse { expires_at_unix_ms })),
            other => Err(unexpected(&other)),
        },
    }
}

pub(super) async fn list(
    api: &Api,
    request: Request<proto::ListTokensRequest>,
) -> Result<Response<proto::ListTokensResponse>, Status> {
    let send = |mut client: forward::Client, request| async move { client.list_tokens(request).await };
    let answer = |_: &proto::ListTokensRequest| {
        let (model, now) = (api.model.borrow().clone(), origin("").at_unix_ms);
        let tokens = model.tokens.list();
        let tokens = tokens.into_iter().map(|token| to_message(token, now)).collect();
        Ok(proto::ListTokensResponse { tokens })
    };
    api.read(request, send, answer).await
}

pub(super) async fn revoke(
    api: &Api,
    mut request: Request<proto::RevokeTokenRequest>,
) -> Result<Response<proto::RevokeTokenResponse>, Status> {
    let by = access::asked_by(&request, &request.get_ref().by);
    let command = Command::RevokeToken {
        id: checked("id", &request.get_ref().id, ID_DIGITS)?,
        origin: origin(&by),
    };
    request.get_mut().by = by;
    match api.handle.propose(command.into()).await {
        Err(ProposeError::NotLeader { leader }) => {
            let send =
                |mut client: forward::Client, request| async move { client.revoke_token(request).await };
            api.forward(leader, request, send).await
        }
        reply => answer(reply).map(|_| Response::new(proto::RevokeTokenResponse {})),
    }
}

fn new_token(message: &proto::CreateTokenRequest, now_unix_ms: u64) -> Result<NewToken, Status> {
    let role: Role = message.role.parse().map_err(|error| invalid("role", error))?;
    if !(1..=MAX_TTL_MS).contains(&message.ttl_ms) {
        let problem = format!("expected up to 30 days, found {} s", message.ttl_ms / 1000);
        return Err(invalid("ttl", problem));
    }
    if !(1..=MAX_USES).contains(&message.uses) {
        let problem = format!("expected 1 to {MAX_USES}, found {}", message.uses);
        return Err(invalid("uses", problem));
    }
    Ok(NewToken {
        id: checked("id", &message.id, ID_DIGITS)?,
        secret_hash: checked("secret_hash", &message.secret_hash, HASH_DIGITS)?,
        role: role.name().to_owned(),
        name: optional_name(&message.name)?,
        expires_at_unix_ms: now_unix_ms.saturating_add(message.ttl_ms),
        uses: message.uses,
    })
}

pub(super) fn optional_name(name: &str) -> Result<Option<NodeId>, Status> {
    let name = (!name.is_empty()).then(|| NodeId::new(name));
    name.transpose().map_err(|error| invalid("name", error))
}

/// Takes `digits` hexadecimal digits.
fn checked(field: &str, text: &str, digits: usize) -> Result<String, Status> {
    let valid = text.len() == digits && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    if valid {
        return Ok(text.to_owned());
    }
    let problem = format!("expected {digits} hexadecimal digits, found {} bytes", text.len());
    Err(invalid(field, problem))
}

fn to_message(token: &Token, now_unix_ms: u64) -> proto::TokenRecord {
    let new = &token.new;
    proto::TokenRecord {
        id: new.id.clone(),
        role: new.role.clone(),
        name: new.name.as_ref().map(ToString::to_string).unwrap_or_default(),
        expires_at_unix_ms: new.expires_at_unix_ms,
        uses: new.uses,
        used_by: token
            .used_by
            .iter()
            .map(|(peer, _)| peer.0.name.to_string())
            .collect(),
        created_by: token.created.by.clone(),
        created_at_unix_ms: token.created.at_unix_ms,
        state: token.state(now_unix_ms).name().into(),
    }
}

/// The refusal of a token, or of what is done with it.
pub(super) fn refused(problem: &TokenProblem, text: String) -> Status {
    match problem {
        TokenProblem::TooMany | TokenProblem::TooManyNames => Status::resource_exhausted(text),
        TokenProblem::Exists => Status::already_exists(text),
        TokenProblem::NoRole(_) => Status::invalid_argument(text),
        TokenProblem::Unknown => Status::not_found(text),
        TokenProblem::WrongSecret
        | TokenProblem::Revoked { .. }
        | TokenProblem::Expired { .. }
        | TokenProblem::UsedUp { .. }
        | TokenProblem::WrongRole { .. }
        | TokenProblem::WrongName { .. }
        | TokenProblem::NoName
        | TokenProblem::NameTaken(_) => Status::permission_denied(text),
    }
}
