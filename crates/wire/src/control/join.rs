//! The first start of a process: its identity comes for a token.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use mosec_types::NodeId;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Request, Status};

use super::client::explained;
use super::endpoint::{EndpointError, joining_channel};
use super::proto;
use super::proto::control_plane_client::ControlPlaneClient;
use crate::tls::{Fingerprint, Identity, JoinToken, PendingKey, Role, TlsError};

/// Time for one try at one node: it may have to find a member that signs, and the log has to take the use.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for all tries: a process that is started with its cluster waits for that.
const JOIN_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause after all nodes were tried.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Who joins, and where.
#[derive(Debug, Clone)]
pub struct JoinTarget<'a> {
    /// Where the identity is kept.
    pub dir: &'a Path,
    /// `host:port` of control-plane nodes.
    pub control_plane: &'a [String],
    /// What the joiner can be.
    pub roles: &'a [Role],
    /// The name it wants; the token's own where absent.
    pub name: Option<&'a str>,
    /// The name where neither says one.
    pub fallback_name: Option<&'a str>,
}

/// Why a process has no identity.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("there is no identity in {}, and no token to get one with", .0.display())]
    NoToken(PathBuf),
    #[error("the identity in {} has expired, and there is no token to join anew with", .0.display())]
    Expired(PathBuf),
    #[error("the identity in {} cannot be used", dir.display())]
    Unusable { dir: PathBuf, source: TlsError },
    #[error("the control plane refused: {0}")]
    Refused(String),
    #[error("the control plane is unavailable ({attempts} attempts at {endpoints}): {last}")]
    Unavailable {
        endpoints: String,
        attempts: u32,
        last: String,
    },
    #[error("the control plane's answer is of another authority than the token")]
    OtherAuthority,
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// The identity that is kept in the target's folder; where there is none that is good, one that `token` is exchanged for, which is
/// kept there from then on. `token` is looked at only then: a text, or `@` and a file with it.
///
/// The key is made here and never leaves. It is kept before the token is used: a start that is interrupted goes on with
/// the same key, and for that key the token is good again.
pub async fn identity_in(target: &JoinTarget<'_>, token: Option<&str>) -> Result<Identity, JoinError> {
    let JoinTarget { dir, roles, .. } = *target;
    if Identity::is_in(dir) {
        let identity = load(dir, roles)?;
        if SystemTime::now() < identity.validity().not_after {
            return Ok(identity);
        }
        if token.is_none() {
            return Err(JoinError::Expired(dir.to_owned()));
        }
        tracing::warn!(identity = %identity.peer(), "the certificate has expired, joining anew");
    }
    let token = token.ok_or_else(|| JoinError::NoToken(dir.to_owned()))?;
    let token = &JoinToken::from_argument(token)?;
    let key = PendingKey::kept_in(dir)?;
    let certified = join(target, token, &key).await?;
    if Fingerprint::of_pem(&certified.ca_pem)? != token.fingerprint() {
        return Err(JoinError::OtherAuthority);
    }
    let identity = key.certified(&certified.ca_pem, &certified.cert_pem)?;
    identity.save(dir)?;
    tracing::info!(identity = %identity.peer(), dir = %dir.display(), "joined the cluster");
    Ok(identity)
}

fn load(dir: &Path, roles: &[Role]) -> Result<Identity, JoinError> {
    let unusable = |source| JoinError::Unusable {
        dir: dir.to_owned(),
        source,
    };
    let identity = Identity::load(dir).map_err(unusable)?;
    match roles {
        _ if roles.contains(&identity.role()) => Ok(identity),
        [only] => Identity::load_as(dir, *only).map_err(unusable),
        _ => Err(unusable(TlsError::Role {
            path: dir.to_owned(),
            found: identity.role().name(),
            expected: "another one",
        })),
    }
}

async fn join(
    target: &JoinTarget<'_>,
    token: &JoinToken,
    key: &PendingKey,
) -> Result<proto::Certified, JoinError> {
    let request = proto::JoinRequest {
        token: token.id().to_owned(),
        secret: token.secret(),
        roles: target.roles.iter().map(|role| role.name().to_owned()).collect(),
        name: target.name.unwrap_or_default().to_owned(),
        signing_request: key.request()?,
        fallback_name: target.fallback_name.unwrap_or_default().to_owned(),
    };
    if target.control_plane.is_empty() {
        return Err(EndpointError::None.into());
    }
    let deadline = Instant::now() + JOIN_TIMEOUT;
    let (mut attempts, mut last) = (0, String::new());
    loop {
        for address in target.control_plane {
            // A channel for each try: where the other end is not the token's cluster, nothing was sent.
            let mut client = ControlPlaneClient::new(joining_channel(address, token.fingerprint())?);
            attempts += 1;
            let answer = timeout(ATTEMPT_TIMEOUT, client.join(Request::new(request.clone()))).await;
            let status = match answer {
                Ok(Ok(certified)) => return Ok(certified.into_inner()),
                Ok(Err(status)) => explained(status),
                Err(_) => Status::deadline_exceeded(format!("no answer within {ATTEMPT_TIMEOUT:?}")),
            };
            if !may_pass(status.code()) {
                return Err(JoinError::Refused(status.message().to_owned()));
            }
            last = format!("{address}: {}", status.message());
            tracing::warn!(address, error = status.message(), "could not join yet");
            if Instant::now() >= deadline {
                return Err(JoinError::Unavailable {
                    endpoints: target.control_plane.join(", "),
                    attempts,
                    last,
                });
            }
        }
        sleep(RETRY_PAUSE).await;
        tracing::trace!(last, "trying again");
    }
}

fn may_pass(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Unknown
            | Code::Cancelled
            | Code::ResourceExhausted
    )
}

/// This host's name as a name in the cluster: its first label. `None` where it cannot be one.
pub fn host_name() -> Option<String> {
    let full = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let label = full.trim().split('.').next()?.to_lowercase();
    NodeId::new(label).ok().map(|name| name.to_string())
}
