//! What a worker runs: its code, fetched and unpacked, and an environment with what the code needs.
//!
//! Supervisors ask for it before each start of a process, and wait. Both are folders of a [`cache`]: made once for all replicas of a node,
//! kept across restarts of worker and agent, so that neither needs the control plane or a package index.

mod cache;
mod environment;
pub(crate) mod follow;
mod surplus;
mod tool;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use mosec_types::BundleId;
use mosec_types::spec::PythonSource;
use tokio::sync::Semaphore;

use self::cache::{Cache, Hold};
use self::environment::Interpreter;
use self::surplus::Keep;

/// Bundles kept beyond those of the topology.
const KEEP_BUNDLES: Keep = Keep {
    count: 5,
    bytes: 2 << 30,
};
/// Environments kept beyond those in use. A large framework takes some gigabytes.
const KEEP_ENVIRONMENTS: Keep = Keep {
    count: 3,
    bytes: 10 << 30,
};

/// Bundles fetched at a time, each of which is in memory meanwhile; an agent that starts may have many to fetch.
const MAX_FETCHES: usize = 4;
/// Environments made at a time: each installer unpacks on all cores by itself.
const MAX_INSTALLS: usize = 2;

/// Gives a bundle's bytes, or says why it cannot.
pub(crate) type Fetch = Arc<dyn Fn(BundleId) -> BoxFuture<'static, Result<Bytes, String>> + Send + Sync>;

/// Why a worker's code is not ready.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum CodeError {
    #[error("this node runs what lies on it and fetches no code")]
    NoSource,
    #[error("bundle {} cannot be fetched: {problem}", id.short())]
    Fetch { id: BundleId, problem: String },
    #[error("bundle {} cannot be unpacked: {problem}", id.short())]
    Unpack { id: BundleId, problem: String },
    #[error("{} cannot be used: {problem}", path.display())]
    Io { path: PathBuf, problem: String },
    #[error("the interpreter {python} cannot be looked at: {problem}")]
    Interpreter { python: String, problem: String },
    /// The problem's last lines say the most, and what is cut off a long text is its beginning.
    #[error("the requirements cannot be installed with {tool}:\n{problem}")]
    Requirements { tool: &'static str, problem: String },
}

impl CodeError {
    fn io(path: &Path, source: &io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            problem: source.to_string(),
        }
    }
}

/// What a process is started with. Its folders stay for as long as this lives.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// With an absolute folder and an interpreter.
    pub(crate) source: PythonSource,
    /// Where the environment has its programs, which come first on `PATH`.
    pub(crate) bin: Option<PathBuf>,
    _holds: Vec<Hold>,
}

/// Gets code ready. A cheap handle.
#[derive(Clone)]
pub(crate) struct Code(Arc<Inner>);

struct Inner {
    fetch: Fetch,
    bundles: Cache,
    environments: Cache,
    fetches: Arc<Semaphore>,
    installs: Arc<Semaphore>,
}

impl Code {
    /// Keeps everything in `dir`, which is made if it is not there.
    pub(crate) fn open(dir: &Path, fetch: Fetch) -> io::Result<Self> {
        // Workers run elsewhere.
        let dir = std::path::absolute(dir)?;
        Ok(Self(Arc::new(Inner {
            fetch,
            bundles: Cache::open(dir.join("bundles"), KEEP_BUNDLES)?,
            environments: Cache::open(dir.join("environments"), KEEP_ENVIRONMENTS)?,
            fetches: Arc::new(Semaphore::new(MAX_FETCHES)),
            installs: Arc::new(Semaphore::new(MAX_INSTALLS)),
        })))
    }

    async fn prepare(&self, mut prepared: Prepared) -> Result<Prepared, CodeError> {
        let source = &mut prepared.source;
        if let Some(id) = source.bundle.take() {
            prepared._holds.push(self.bundle(id).await?);
            let folder = self.0.bundles.path(&id.to_string()).join(&source.dir);
            source.dir = folder.to_string_lossy().into_owned();
        }
        let lines = std::mem::take(&mut source.requirements);
        if let Some(python) = source.python.as_mut().filter(|_| !lines.is_empty()) {
            let interpreter = Interpreter::look_at(python).await?;
            let name = interpreter.environment(&lines);
            let turn = self.0.installs.clone();
            let make = |path| {
                async move {
                    // Never closed.
                    let _turn = turn.acquire_owned().await;
                    environment::make(path, interpreter, lines).await
                }
                .boxed()
            };
            prepared
                ._holds
                .push(self.0.environments.ensure(&name, make).await?);
            let bin = self.0.environments.path(&name).join("bin");
            *python = bin.join("python").to_string_lossy().into_owned();
            prepared.bin = Some(bin);
        }
        Ok(prepared)
    }

    async fn bundle(&self, id: BundleId) -> Result<Hold, CodeError> {
        let (fetch, turn) = (self.0.fetch.clone(), self.0.fetches.clone());
        let make = |path: PathBuf| {
            async move {
                let _turn = turn.acquire_owned().await;
                let bytes = fetch(id)
                    .await
                    .map_err(|problem| CodeError::Fetch { id, problem })?;
                let count = bytes.len();
                let unpacking =
                    move || mosec_bundle::unpack(&bytes, &id, &path, mosec_bundle::MAX_UNPACKED_BYTES);
                let unpacked = tokio::task::spawn_blocking(unpacking).await;
                let problem = match unpacked {
                    Ok(Ok(())) => {
                        tracing::info!(bundle = %id.short(), bytes = count, "bundle fetched");
                        return Ok(());
                    }
                    Ok(Err(error)) => with_causes(&error),
                    Err(panicked) => panicked.to_string(),
                };
                Err(CodeError::Unpack { id, problem })
            }
            .boxed()
        };
        self.0.bundles.ensure(&id.to_string(), make).await
    }

    /// Removes what is neither among these bundles nor held, beyond what is kept.
    async fn sweep(&self, bundles: BTreeSet<String>) {
        let inner = self.0.clone();
        let swept = tokio::task::spawn_blocking(move || {
            inner.bundles.sweep(&bundles)?;
            inner.environments.sweep(&BTreeSet::new())
        });
        match swept.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "code that nothing needs could not be removed"),
            Err(error) => tracing::warn!(%error, "code that nothing needs could not be removed"),
        }
    }
}

/// What a worker of `source` waits for before its process starts, where that may take long.
pub(crate) fn pending(source: &PythonSource) -> Option<&'static str> {
    match (&source.bundle, source.requirements.is_empty()) {
        (None, true) => None,
        (Some(_), true) => Some("its code is being fetched"),
        (None, false) => Some("its requirements are being installed"),
        (Some(_), false) => Some("its code is being fetched and its requirements installed"),
    }
}

/// Gets `source` ready with `code`, or as it is where it lies on this node.
pub(crate) async fn prepare(
    code: Option<&Code>,
    source: &PythonSource,
    default_python: &str,
) -> Result<Prepared, CodeError> {
    let mut source = source.clone();
    source.python.get_or_insert_with(|| default_python.to_owned());
    let is_ready = source.bundle.is_none() && source.requirements.is_empty();
    let prepared = Prepared {
        source,
        bin: None,
        _holds: Vec::new(),
    };
    match code {
        _ if is_ready => Ok(prepared),
        Some(code) => code.prepare(prepared).await,
        None => Err(CodeError::NoSource),
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

#[cfg(test)]
#[path = "code_tests.rs"]
mod tests;
