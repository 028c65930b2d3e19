//! Processes of a cluster, and what the kernel says about them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};

use crate::eventually;

/// A running daemon. Dropping it kills it.
pub struct Daemon {
    pub name: String,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `program`; its output goes to `<name>.log` in `dir`, after what an earlier run left there.
    pub fn start(name: &str, dir: &Path, program: &Path, args: &[String]) -> anyhow::Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log)?;
        let child = Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log,
        })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill_process(pid_of(self.pid())?, signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Kills the process at once, if it has not ended, and waits for its end.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        if self.child.try_wait()?.is_none() {
            self.signal(Signal::KILL)?;
        }
        self.child.wait()?;
        Ok(())
    }

    /// Waits for the process to end by itself; its exit code.
    pub async fn ended(&mut self, limit: Duration) -> anyhow::Result<Option<i32>> {
        let child = std::cell::RefCell::new(&mut self.child);
        let status = eventually("the process ends", limit, || async {
            child.borrow_mut().try_wait().ok().flatten()
        })
        .await?;
        Ok(status.code())
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The value of `field` in the newest JSON log line whose message is `message`.
    pub async fn logged(&self, message: &str, field: &str) -> anyhow::Result<String> {
        let found = eventually(message, Duration::from_secs(20), || async {
            self.log().lines().rev().find_map(|line| {
                let line: serde_json::Value = serde_json::from_str(line).ok()?;
                let fields = &line["fields"];
                (fields["message"] == message).then(|| fields[field].as_str().map(str::to_owned))?
            })
        });
        found
            .await
            .with_context(|| format!("log of {}:\n{}", self.name, self.log()))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pid_of(pid: u32) -> anyhow::Result<Pid> {
    Pid::from_raw(i32::try_from(pid)?).context("zero is no process")
}

/// Kills a process by its id.
pub fn kill(pid: u32) -> anyhow::Result<()> {
    Ok(kill_process(pid_of(pid)?, Signal::KILL)?)
}

/// Whether a process is there and not just waiting to be reaped.
pub fn process_exists(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// All processes that `pid` has started, directly or not.
pub fn descendants(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let mut open = vec![pid];
    while let Some(parent) = open.pop() {
        for thread in threads(parent) {
            let children = fs::read_to_string(thread.join("children")).unwrap_or_default();
            open.extend(
                children
                    .split_whitespace()
                    .filter_map(|child| child.parse::<u32>().ok()),
            );
        }
        found.push(parent);
    }
    found.retain(|&other| other != pid);
    found
}

fn threads(pid: u32) -> Vec<PathBuf> {
    fs::read_dir(format!("/proc/{pid}/task"))
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default()
}

/// Names in /dev/shm that a process has made.
pub fn shared_memory_of(pid: u32) -> Vec<String> {
    let entries = fs::read_dir("/dev/shm")
        .map(|entries| entries.flatten().collect::<Vec<_>>())
        .unwrap_or_default();
    let names = entries
        .iter()
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    names
        .filter(|name| name.starts_with(&format!("mosec-{pid}-")))
        .collect()
}
