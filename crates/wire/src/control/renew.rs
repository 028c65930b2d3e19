//! Keeps an identity's certificate young.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rand::Rng as _;
use tokio_util::sync::CancellationToken;

use super::client::{ControlClient, ControlError};
use super::proto;
use crate::tls::{Due, Identity, LiveIdentity, PendingKey, TlsError};

/// Pauses between tries that failed: a thirtieth of the lifetime, so that ten fit into what is left, within these.
const SHORTEST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60 * 60);
const TRIES_IN_A_LIFETIME: u32 = 30;

/// Why a certificate was not renewed.
#[derive(Debug, thiserror::Error)]
enum RenewError {
    #[error("the control plane gave no new certificate")]
    Control(#[from] ControlError),
    #[error("the new certificate cannot be used")]
    Tls(#[from] TlsError),
    #[error("saving it was interrupted")]
    Interrupted(#[from] tokio::task::JoinError),
}

impl ControlClient {
    /// A new certificate for a new key of the same role and name.
    async fn renew(&self, key: PendingKey) -> Result<Identity, RenewError> {
        let request = proto::RenewRequest {
            signing_request: key.request()?,
            peer: String::new(),
        };
        let certified = self.call(request, |mut client, request| async move {
            client.renew(request).await
        });
        let certified = certified.await?;
        Ok(key.certified(&certified.ca_pem, &certified.cert_pem)?)
    }

    /// Renews `identity` now, for new connections and in `dir`.
    pub async fn renew_now(&self, identity: &LiveIdentity, dir: &Path) -> Result<(), ControlError> {
        let renewed = try_renew(self, identity, dir).await;
        renewed.map_err(|error| match error {
            RenewError::Control(error) => error,
            error => ControlError::Refused {
                code: tonic::Code::Internal,
                message: error.to_string(),
            },
        })
    }
}

/// Renews `identity` whenever two thirds of its certificate's lifetime are over, until `cancel`. What is new is kept in
/// `dir` first, and then used for new connections; those there are live on.
pub async fn keep_fresh(
    client: ControlClient,
    identity: LiveIdentity,
    dir: PathBuf,
    cancel: CancellationToken,
) {
    tokio::select! {
        () = renew_forever(&client, &identity, &dir) => {}
        () = cancel.cancelled() => {}
    }
}

async fn renew_forever(client: &ControlClient, identity: &LiveIdentity, dir: &Path) {
    let mut draw = rand::rng().random();
    loop {
        let current = identity.current();
        let validity = current.validity();
        let due = validity.due(SystemTime::now(), draw);
        if let Due::Later(pause) = due {
            tokio::time::sleep(pause).await;
            continue;
        }
        match try_renew(client, identity, dir).await {
            Ok(()) => draw = rand::rng().random(),
            Err(error) => {
                let (peer, error) = (current.peer(), chain(&error));
                if due == Due::Expired {
                    tracing::error!(%peer, error, "the certificate has expired: join anew with a token");
                } else {
                    tracing::warn!(%peer, error, "the certificate could not be renewed yet");
                }
                let pause = validity.lifetime() / TRIES_IN_A_LIFETIME;
                tokio::time::sleep(pause.clamp(SHORTEST_PAUSE, LONGEST_PAUSE)).await;
            }
        }
    }
}

async fn try_renew(client: &ControlClient, identity: &LiveIdentity, dir: &Path) -> Result<(), RenewError> {
    let next = client.renew(PendingKey::generate()?).await?;
    let (saved, dir) = (next.clone(), dir.to_owned());
    tokio::task::spawn_blocking(move || saved.save(&dir)).await??;
    let until = next.validity().not_after;
    let left = until.duration_since(SystemTime::now()).unwrap_or_default();
    tracing::info!(identity = %next.peer(), good_for_s = left.as_secs(), "certificate renewed");
    identity.replace(next)?;
    Ok(())
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
