//! The first start of a process: its identity comes for a token.

use std::collections::BTreeMap;
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
pub const JOIN_TRY_TIMEOUT: Duration = Duration::from_secs(10);
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
    /// No member could be asked.
    #[error("the control plane is unavailable ({attempts} attempts at {endpoints}): {why}")]
    Unavailable {
        endpoints: String,
        attempts: u32,
        why: String,
    },
    /// Members answered, and none could sign.
    #[error("no certificate was given within {within:?} ({attempts} attempts): {why}")]
    Unsigned {
        within: Duration,
        attempts: u32,
        why: String,
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
    identity_in_telling(target, token, &mut |_| {}).await
}

/// As [`identity_in`]. `tell` hears whom it asks, and whenever a try has failed what all of them have said, for a person who
/// waits.
pub async fn identity_in_telling(
    target: &JoinTarget<'_>,
    token: Option<&str>,
    tell: &mut (dyn FnMut(&str) + Send),
) -> Result<Identity, JoinError> {
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
    let certified = join(target, token, &key, tell).await?;
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
    tell: &mut (dyn FnMut(&str) + Send),
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
    let endpoints = target.control_plane.join(", ");
    tell(&format!("asking {endpoints} for a certificate"));
    let deadline = Instant::now() + JOIN_TIMEOUT;
    let mut tries = Tries::default();
    loop {
        for address in target.control_plane {
            // A channel for each try: where the other end is not the token's cluster, nothing was sent.
            let mut client = ControlPlaneClient::new(joining_channel(address, token.fingerprint())?);
            let answer = timeout(JOIN_TRY_TIMEOUT, client.join(Request::new(request.clone()))).await;
            let (status, is_said) = match answer {
                Ok(Ok(certified)) => return Ok(certified.into_inner()),
                // What was made of a broken connection has that as its source.
                Ok(Err(status)) => {
                    let is_said = std::error::Error::source(&status).is_none();
                    (explained(status), is_said)
                }
                Err(_) => {
                    let problem = format!("no answer within {JOIN_TRY_TIMEOUT:?}");
                    (Status::deadline_exceeded(problem), false)
                }
            };
            if !may_pass(status.code()) {
                return Err(JoinError::Refused(status.message().to_owned()));
            }
            tracing::warn!(address, error = status.message(), "could not join yet");
            tries.failed(address, is_said, status.message());
            tell(&format!(
                "no certificate yet, trying for up to {JOIN_TIMEOUT:?}: {}",
                tries.why()
            ));
            if Instant::now() >= deadline {
                return Err(tries.into_error(endpoints));
            }
        }
        sleep(RETRY_PAUSE).await;
    }
}

/// What has come of the tries of a join.
#[derive(Debug, Default)]
struct Tries {
    count: u32,
    /// By address, of the last try there: whether a member said it, and what.
    last: BTreeMap<String, (bool, String)>,
}

impl Tries {
    /// `is_said`: a member answered so, and it is not what became of the connection.
    fn failed(&mut self, address: &str, is_said: bool, problem: &str) {
        self.count += 1;
        self.last
            .insert(address.to_owned(), (is_said, problem.to_owned()));
    }

    /// What members say, and then who could not be asked: a member that answers is nearer to the cause.
    fn why(&self) -> String {
        let told = |wanted: bool| {
            let those = self
                .last
                .iter()
                .filter(move |(_, (is_said, _))| *is_said == wanted);
            those.map(move |(address, (_, problem))| match wanted {
                true => format!("{address} says: {problem}"),
                false => format!("{address}: {problem}"),
            })
        };
        told(true).chain(told(false)).collect::<Vec<_>>().join("; ")
    }

    fn into_error(self, endpoints: String) -> JoinError {
        let (attempts, why) = (self.count, self.why());
        if self.last.values().any(|(is_said, _)| *is_said) {
            let within = JOIN_TIMEOUT;
            JoinError::Unsigned {
                within,
                attempts,
                why,
            }
        } else {
            JoinError::Unavailable {
                endpoints,
                attempts,
                why,
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_members_say_is_the_cause() {
        let mut tries = Tries::default();
        tries.failed("a:1", false, "connection refused");
        tries.failed("b:1", true, "no leader is known");
        tries.failed("a:1", false, "connection refused");
        assert_eq!(
            tries.why(),
            "b:1 says: no leader is known; a:1: connection refused"
        );
        assert_eq!(
            tries.into_error("a:1, b:1".into()).to_string(),
            "no certificate was given within 60s (3 attempts): b:1 says: no leader is known; a:1: connection refused"
        );
    }

    #[test]
    fn where_nobody_answers_it_is_the_control_plane() {
        let mut tries = Tries::default();
        // What was said before counts no longer.
        tries.failed("a:1", true, "no leader is known");
        tries.failed("a:1", false, "connection refused");
        assert_eq!(
            tries.into_error("a:1".into()).to_string(),
            "the control plane is unavailable (2 attempts at a:1): a:1: connection refused"
        );
    }
}
