//! Starts and ends one worker process.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use mosec_types::spec::PythonSource;
use mosec_types::{ReplicaId, StageSpec};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Serialize;
use tokio::process::{Child, ChildStderr, ChildStdout, Command};

use super::oom::{Cgroups, LOOK_EVERY, Memory, Watched};
use crate::code::Prepared;

/// Tells CUDA which GPUs a process may use.
const VISIBLE_DEVICES: &str = "CUDA_VISIBLE_DEVICES";

/// What a worker process is told about itself.
#[derive(Serialize)]
struct WorkerSpec<'a> {
    source: &'a PythonSource,
    stage: &'a StageSpec,
    replica: ReplicaId,
}

/// The text a worker reads first.
pub(crate) fn worker_spec(
    source: &PythonSource,
    stage: &StageSpec,
    replica: ReplicaId,
) -> serde_json::Result<String> {
    serde_json::to_string(&WorkerSpec {
        source,
        stage,
        replica,
    })
}

/// What a worker process finds around it, beside its code.
pub(crate) struct Surroundings<'a> {
    /// The GPUs it may use, in CUDA's words; all of the host's where absent.
    pub(crate) gpus: Option<&'a str>,
    /// Its standard input.
    pub(crate) control: OwnedFd,
    pub(crate) cgroups: &'a Cgroups,
    /// Whether its output goes into pipes, and not where the agent's goes.
    pub(crate) captured: bool,
}

/// A worker process, with whatever it starts in turn. Dropping it kills them all.
pub(crate) struct Process {
    child: Child,
    pid: Option<u32>,
    /// What its cgroup tells of memory, where it does.
    memory: Option<Watched>,
    /// Whether the agent has killed it itself.
    killed: AtomicBool,
}

impl Process {
    /// Starts a worker.
    ///
    /// It leads a process group of its own: a Ctrl-C at the agent's terminal does not reach it, and its children end
    /// with it. Should this agent die, the worker reads the end of `control` and ends its group itself.
    pub(crate) fn start(
        prepared: &Prepared,
        stage: &StageSpec,
        replica: ReplicaId,
        surroundings: Surroundings<'_>,
    ) -> std::io::Result<Self> {
        let Surroundings {
            gpus,
            control,
            cgroups,
            captured,
        } = surroundings;
        let source = &prepared.source;
        let python = source.python.as_deref().ok_or(std::io::ErrorKind::NotFound)?;
        let mut command = Command::new(python);
        command
            .args(["-P", "-m", "mosec.runner"])
            .current_dir(&source.dir)
            .stdin(Stdio::from(control))
            .process_group(0)
            .kill_on_drop(true);
        if captured {
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
        }
        if let Some(bin) = &prepared.bin {
            command.env("PATH", path_with(bin));
        }
        if let Some(gpus) = gpus {
            command.env(VISIBLE_DEVICES, gpus);
        }
        if let Some(env) = stage.env_of(replica) {
            command.envs(env);
        }
        let child = command.spawn()?;
        let pid = child.id();
        let memory = pid.and_then(|pid| cgroups.watch(pid));
        Ok(Self {
            child,
            pid,
            memory,
            killed: AtomicBool::new(false),
        })
    }

    /// Its standard output and error, where they were captured and not taken yet.
    pub(crate) fn pipes(&mut self) -> (Option<ChildStdout>, Option<ChildStderr>) {
        (self.child.stdout.take(), self.child.stderr.take())
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Waits for the end of the process and says how it ended. Cancel safe.
    pub(crate) async fn ended(&mut self) -> String {
        let ended = loop {
            if let Some(memory) = &self.memory {
                memory.note(Instant::now());
            }
            tokio::select! {
                ended = self.child.wait() => break ended,
                () = tokio::time::sleep(LOOK_EVERY), if self.memory.is_some() => {}
            }
        };
        let cause = || {
            let told = self.memory.as_ref();
            let told = told.and_then(|memory| memory.tell(Instant::now()));
            match told {
                // One that is slow to go is killed by the agent as well.
                Some(memory @ Memory::RanOut { .. }) => Cause::Memory(memory),
                _ if self.killed.load(Ordering::Relaxed) => Cause::Agent,
                Some(memory) => Cause::Memory(memory),
                None => Cause::Unknown,
            }
        };
        match ended {
            Ok(status) => describe(status, cause),
            Err(error) => format!("could not be waited for: {error}"),
        }
    }

    /// Ends the process and its children at once.
    pub(crate) fn kill(&self) {
        let group = self
            .pid
            .and_then(|pid| i32::try_from(pid).ok())
            .and_then(Pid::from_raw);
        if let Some(group) = group {
            self.killed.store(true, Ordering::Relaxed);
            // ESRCH: everybody is gone already.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The agent's own `PATH` with a folder before it.
fn path_with(bin: &Path) -> OsString {
    let own = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(bin.to_owned()).chain(std::env::split_paths(&own));
    // A folder with a ':' in its name cannot be on a PATH; without it programs are found as ever.
    std::env::join_paths(folders).unwrap_or(own)
}

/// Who has killed a process.
enum Cause {
    Agent,
    /// Its cgroup tells.
    Memory(Memory),
    Unknown,
}

/// `cause`: asked only of a process that was killed.
fn describe(status: std::process::ExitStatus, cause: impl FnOnce() -> Cause) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("the process exited with code {code}"),
        (None, Some(9)) => match cause() {
            Cause::Agent => "the process was killed by signal 9, by its agent".into(),
            Cause::Memory(memory) => format!("the process was killed by signal 9, {memory}"),
            Cause::Unknown => {
                "the process was killed by signal 9, as the kernel does where memory runs out".into()
            }
        },
        (None, Some(signal)) => format!("the process was killed by signal {signal}"),
        (None, None) => "the process ended".into(),
    }
}
