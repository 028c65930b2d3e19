//! The context file: where the control plane of a running `mosectl up` is, so that other calls find it.
//!
//! It lies in a folder of the user's own, `$XDG_RUNTIME_DIR/mosec` or `/tmp/mosec-<uid>`, which must belong to the user
//! and be closed to others: who could write it could make an operator speak to a control plane of theirs.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::process::{Pid, geteuid, test_kill_process};
use serde::{Deserialize, Serialize};

const FILE: &str = "context.json";

/// What a running `mosectl up` tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// `host:port` of the control plane.
    pub control_plane: Vec<String>,
    /// Folder with the operator's certificate and key.
    pub identity: PathBuf,
    /// Where the gateway answers, as `http://127.0.0.1:8000`.
    pub gateway: String,
    /// The process that wrote this.
    pub pid: u32,
}

/// Why the context file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    #[error("{} is not a folder of this user alone", .0.display())]
    NotPrivate(PathBuf),
    #[error("{} cannot be used", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} is not valid", path.display())]
    Content {
        path: PathBuf,
        source: serde_json::Error,
    },
}

/// The folder of the context file.
#[derive(Debug, Clone)]
pub struct ContextDir(PathBuf);

/// What is in the folder.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    Nothing,
    /// The process that wrote it has gone without removing it.
    Stale(Context),
    Running(Context),
}

/// A context file that is removed when this is dropped.
#[derive(Debug)]
pub struct Published {
    path: PathBuf,
}

impl ContextDir {
    /// The current user's.
    pub fn of_user() -> Self {
        match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from) {
            Some(dir) if dir.is_absolute() && dir.is_dir() => Self(dir.join("mosec")),
            _ => Self(PathBuf::from(format!("/tmp/mosec-{}", geteuid().as_raw()))),
        }
    }

    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self(dir.into())
    }

    pub fn find(&self) -> Result<Found, ContextError> {
        if !self.check()? {
            return Ok(Found::Nothing);
        }
        let path = self.0.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(source) => return Err(ContextError::Io { path, source }),
        };
        let context: Context =
            serde_json::from_str(&text).map_err(|source| ContextError::Content { path, source })?;
        Ok(if is_running(context.pid) {
            Found::Running(context)
        } else {
            Found::Stale(context)
        })
    }

    /// Writes the file, or gives `None` where another running process has its own there.
    pub fn publish(&self, context: &Context) -> Result<Option<Published>, ContextError> {
        let io_error = |path: &Path| {
            let path = path.to_owned();
            move |source| ContextError::Io { path, source }
        };
        match DirBuilder::new().mode(0o700).create(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(io_error(&self.0)(error));
            }
            _ => {}
        }
        match self.find() {
            Ok(Found::Running(other)) if other.pid != context.pid => return Ok(None),
            // What cannot be read is of no use to anybody.
            Ok(_) | Err(ContextError::Content { .. }) => {}
            Err(error) => return Err(error),
        }
        let path = self.0.join(FILE);
        let text = serde_json::to_string_pretty(context).map_err(|source| ContextError::Content {
            path: path.clone(),
            source,
        })?;
        let temporary = self.0.join(format!("{FILE}.{}", context.pid));
        write(&temporary, &text)
            .and_then(|()| fs::rename(&temporary, &path))
            .map_err(io_error(&path))?;
        Ok(Some(Published { path }))
    }

    /// Whether the folder is there. Errors: it is not the user's alone.
    fn check(&self) -> Result<bool, ContextError> {
        match fs::symlink_metadata(&self.0) {
            Ok(found) => {
                let private =
                    found.is_dir() && found.uid() == geteuid().as_raw() && found.mode() & 0o077 == 0;
                if private {
                    Ok(true)
                } else {
                    Err(ContextError::NotPrivate(self.0.clone()))
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(ContextError::Io {
                path: self.0.clone(),
                source,
            }),
        }
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        // Fails where something else is in there.
        let _ = self.path.parent().map(fs::remove_dir);
    }
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())
}

fn is_running(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    // A process of another user is there, and yet not ours.
    pid.is_some_and(|pid| test_kill_process(pid).is_ok())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn context(pid: u32) -> Context {
        Context {
            control_plane: vec!["127.0.0.1:7400".into()],
            identity: "/data/operator".into(),
            gateway: "http://127.0.0.1:8000".into(),
            pid,
        }
    }

    /// No process can have it: above the kernel's limit of 2^22.
    const NOBODY: u32 = 1 << 30;

    #[test]
    fn a_context_is_found_until_it_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let dir = ContextDir::at(folder.path().join("mosec"));
        assert_eq!(dir.find().unwrap(), Found::Nothing);
        let mine = context(std::process::id());
        let published = dir.publish(&mine).unwrap().unwrap();
        assert_eq!(dir.find().unwrap(), Found::Running(mine));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&dir.0), mode(&published.path)), (0o700, 0o600));
        assert!(
            dir.publish(&context(NOBODY)).unwrap().is_none(),
            "another one's is not replaced"
        );
        drop(published);
        assert!(!dir.0.exists());
    }

    #[test]
    fn what_a_dead_process_left_is_stale_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let dir = ContextDir::at(folder.path().join("mosec"));
        std::mem::forget(dir.publish(&context(NOBODY)).unwrap().unwrap());
        assert_eq!(dir.find().unwrap(), Found::Stale(context(NOBODY)));
        let mine = context(std::process::id());
        let _published = dir.publish(&mine).unwrap().unwrap();
        assert_eq!(dir.find().unwrap(), Found::Running(mine));
    }

    #[test]
    fn an_open_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let dir = ContextDir::at(folder.path().join("mosec"));
        fs::create_dir(&dir.0).unwrap();
        fs::set_permissions(&dir.0, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(dir.find(), Err(ContextError::NotPrivate(_))));
        assert!(matches!(
            dir.publish(&context(1)),
            Err(ContextError::NotPrivate(_))
        ));
        fs::remove_dir(&dir.0).unwrap();
        std::os::unix::fs::symlink(folder.path(), &dir.0).unwrap();
        assert!(matches!(dir.find(), Err(ContextError::NotPrivate(_))));
    }

    #[test]
    fn a_file_of_another_kind_is_an_error_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let dir = ContextDir::at(folder.path().join("mosec"));
        DirBuilder::new().mode(0o700).create(&dir.0).unwrap();
        fs::write(dir.0.join(FILE), "{").unwrap();
        assert!(matches!(dir.find(), Err(ContextError::Content { .. })));
        assert!(dir.publish(&context(std::process::id())).unwrap().is_some());
    }
}
