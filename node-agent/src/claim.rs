//! What of its host only one agent can have: ports, and the folder of its state.

use std::fs::{self, File, TryLockError};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use mosec_telemetry::Admin;
use mosec_wire::quic::LinkSocket;

/// Locked while an agent uses its state folder.
const LOCK: &str = "lock";

/// What of its host only one agent can have. Taken before anything else: a start that fails for want of it has not
/// used up a token, nor touched what another agent works with.
pub struct Claim {
    pub(crate) socket: LinkSocket,
    /// `host:port` under which others reach the link.
    pub(crate) address: String,
    pub(crate) admin: Option<Admin>,
    /// What the admin endpoint gives.
    pub(crate) series: mosec_telemetry::Series,
    pub(crate) state: Option<StateDir>,
}

/// A state folder that is this process's until it is dropped.
pub(crate) struct StateDir {
    pub(crate) path: PathBuf,
    _lock: File,
}

impl Claim {
    /// Takes all of it. Needs a tokio runtime.
    ///
    /// `advertise`: the listening address where absent. `state_dir`: where the last topology is kept, for a start without
    /// the control plane; nowhere where absent.
    pub async fn take(
        listen: SocketAddr,
        advertise: Option<String>,
        admin: Option<SocketAddr>,
        state_dir: Option<PathBuf>,
    ) -> anyhow::Result<Self> {
        let state = state_dir.map(StateDir::take).transpose()?;
        let socket = LinkSocket::take(listen)?;
        let address = reached_at(advertise, socket.local_addr())?;
        let series = mosec_telemetry::Series::default();
        let admin = match admin {
            Some(address) => Some(
                Admin::bind(address, series.clone())
                    .await
                    .with_context(|| format!("cannot listen on {address}"))?,
            ),
            None => None,
        };
        Ok(Self {
            socket,
            address,
            admin,
            series,
            state,
        })
    }
}

impl StateDir {
    fn take(path: PathBuf) -> anyhow::Result<Self> {
        let dir = path.display();
        fs::create_dir_all(&path).with_context(|| format!("cannot make the state folder {dir}"))?;
        let lock = lock(&path)?;
        Ok(Self { path, _lock: lock })
    }
}

/// Locks the folder until the file is dropped, or its process has ended in whatever way.
fn lock(dir: &Path) -> anyhow::Result<File> {
    let path = dir.join(LOCK);
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => anyhow::bail!(
            "the state folder {} is in use by another node agent: expected a --state-dir for each",
            dir.display()
        ),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

/// Where others reach the link: as told, else where it listens, if that is one address and not all of them.
fn reached_at(advertise: Option<String>, listen: SocketAddr) -> anyhow::Result<String> {
    match advertise {
        Some(address) => Ok(address),
        None if listen.ip().is_unspecified() => anyhow::bail!(
            "--advertise is missing: expected the host:port under which gateways and other agents reach this node, as \
             --listen {listen} means all of its addresses"
        ),
        None => Ok(listen.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_told_an_address_that_they_can_reach() {
        let reached = |advertise: Option<&str>, listen: &str| {
            reached_at(advertise.map(str::to_owned), listen.parse().unwrap()).ok()
        };
        let host = Some("gpu-1:7443".to_owned());
        assert_eq!(reached(Some("gpu-1:7443"), "0.0.0.0:7443"), host);
        assert_eq!(reached(None, "10.0.0.7:7443"), Some("10.0.0.7:7443".into()));
        assert_eq!(
            (reached(None, "0.0.0.0:7443"), reached(None, "[::]:7443")),
            (None, None)
        );
    }

    #[tokio::test]
    async fn what_another_agent_has_cannot_be_taken() {
        let dir = tempfile::tempdir().unwrap();
        let take = async |listen: SocketAddr, state: &str| {
            let state = dir.path().join(state);
            let taken = Claim::take(listen, None, None, Some(state)).await;
            taken.map_err(|error| format!("{error:#}"))
        };
        let any = "127.0.0.1:0".parse().unwrap();
        let first = take(any, "state").await.unwrap();
        let refused = take(any, "state").await.err().unwrap();
        let expected = format!(
            "the state folder {} is in use by another node agent: expected a --state-dir for each",
            dir.path().join("state").display()
        );
        assert_eq!(refused, expected);
        let refused = take(first.socket.local_addr(), "other").await.err().unwrap();
        assert!(
            refused.starts_with(&format!(
                "socket {} could not be opened: Address already in use",
                first.address
            )),
            "{refused}"
        );
        drop(first);
        assert!(take(any, "state").await.is_ok(), "it is free again");
    }
}
