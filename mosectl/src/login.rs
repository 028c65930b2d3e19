//! Where `mosectl login` keeps a person's identity, and which control plane it is for.

use std::fs;
use std::io;
use std::path::PathBuf;

use anyhow::Context as _;
use mosec_wire::control::{JoinError, JoinTarget, identity_in_telling};
use mosec_wire::tls::Identity;
use serde::{Deserialize, Serialize};

use crate::failure::{Exit, Failure, Result};
use crate::terminal::{self, Progress};

const FILE: &str = "login.json";
const IDENTITY: &str = "identity";

/// Which control plane the kept identity is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Login {
    pub(crate) control_plane: Vec<String>,
}

/// The folder of a user's login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LoginDir(PathBuf);

impl LoginDir {
    /// The current user's: `$XDG_CONFIG_HOME/mosec`, else `~/.config/mosec`. `None` for who has no home.
    pub(crate) fn of_user() -> Option<Self> {
        let absolute = |name: &str| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|dir| dir.is_absolute())
        };
        let config = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")));
        config.map(|dir| Self(dir.join("mosec")))
    }

    pub(crate) fn identity(&self) -> PathBuf {
        self.0.join(IDENTITY)
    }

    pub(crate) fn find(&self) -> Result<Option<Login>> {
        let path = self.0.join(FILE);
        match fs::read_to_string(&path) {
            Ok(text) => {
                let login = serde_json::from_str(&text);
                Ok(Some(
                    login.with_context(|| format!("{} is not valid", path.display()))?,
                ))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(anyhow::Error::from(error)
                .context(format!("cannot read {}", path.display()))
                .into()),
        }
    }

    pub(crate) fn keep(&self, login: &Login) -> Result {
        let path = self.0.join(FILE);
        let write = fs::create_dir_all(&self.0)
            .and_then(|()| fs::write(&path, serde_json::to_string_pretty(login)? + "\n"));
        Ok(write.with_context(|| format!("cannot write {}", path.display()))?)
    }
}

/// The identity in a folder, or one that the token is exchanged for, with what that waits for on standard error: a member
/// that signs may be away for as long as the exchange is tried.
pub(crate) async fn joined(target: &JoinTarget<'_>, token: &str) -> Result<Identity, JoinError> {
    let mut progress = Progress::new();
    let mut tell = |text: &str| progress.show(&terminal::printable(text));
    identity_in_telling(target, Some(token), &mut tell).await
}

/// The failure of an exchange, with what helps.
pub(crate) fn join_failure(error: JoinError) -> Failure {
    match &error {
        JoinError::Unavailable { .. } => {
            Failure::new(Exit::Unreachable, error).hint("is it running, and are these its addresses?")
        }
        JoinError::Unsigned { .. } => Failure::from(error).hint(
            "the token is still good: try again when a member that was started with --ca is back and a leader is there. \
             `mosectl cluster status` of somebody with an identity shows both",
        ),
        _ => Failure::from(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let dir = LoginDir(folder.path().join("mosec"));
        assert_eq!(dir.find().unwrap(), None);
        let login = Login {
            control_plane: vec!["a:1".into(), "b:1".into()],
        };
        dir.keep(&login).unwrap();
        assert_eq!(dir.find().unwrap(), Some(login));
        fs::write(folder.path().join("mosec/login.json"), "{").unwrap();
        assert!(dir.find().unwrap_err().to_string().contains("is not valid"));
    }

    #[test]
    fn a_cluster_that_does_not_sign_is_not_one_that_is_away() {
        let why = || "a:1 says: no leader is known".to_owned();
        let unsigned = join_failure(JoinError::Unsigned {
            within: std::time::Duration::from_secs(60),
            attempts: 2,
            why: why(),
        });
        assert_eq!(unsigned.exit, Exit::Failed);
        assert!(
            unsigned.to_string().contains("hint: the token is still good"),
            "{unsigned}"
        );
        let away = join_failure(JoinError::Unavailable {
            endpoints: "a:1".into(),
            attempts: 2,
            why: "a:1: connection refused".into(),
        });
        assert_eq!(away.exit, Exit::Unreachable);
        assert!(away.to_string().ends_with("are these its addresses?"), "{away}");
    }
}
