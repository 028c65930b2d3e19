//! Runs a program for what it says, within a time.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};

/// What is kept of each output: the end, which says what went wrong.
const KEPT_BYTES: usize = 16 * 1024;

/// What a program has said and how it ended.
pub(crate) struct Ran {
    pub(crate) status: ExitStatus,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Ends a program with everything that it has started, should nobody wait for it any more.
struct Group(Child, Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let group = self
            .1
            .and_then(|pid| i32::try_from(pid).ok())
            .and_then(Pid::from_raw);
        if let Some(group) = group {
            // ESRCH: everybody is gone already.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Runs `command` to its end. When this is dropped, the program is killed.
pub(crate) async fn run(command: &mut Command, limit: Duration) -> Result<Ran, String> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    let child = command
        .spawn()
        .map_err(|error| format!("{program} cannot be started: {error}"))?;
    let pid = child.id();
    let mut group = Group(child, pid);
    let (out, err) = (group.0.stdout.take(), group.0.stderr.take());
    let ended = async { tokio::join!(end_of(out), end_of(err), group.0.wait()) };
    match tokio::time::timeout(limit, ended).await {
        Ok((out, err, Ok(status))) => {
            group.1 = None;
            Ok(Ran { status, out, err })
        }
        Ok((_, _, Err(error))) => Err(format!("{program} could not be waited for: {error}")),
        Err(_) => Err(format!("{program} did not end within {limit:?}")),
    }
}

/// Reads to the end and keeps that.
async fn end_of(output: Option<impl AsyncRead + Unpin>) -> String {
    let mut kept = Vec::new();
    let Some(mut output) = output else {
        return String::new();
    };
    // What cannot be read has ended.
    while output.read_buf(&mut kept).await.is_ok_and(|count| count > 0) {
        if kept.len() > 2 * KEPT_BYTES {
            kept.drain(..kept.len() - KEPT_BYTES);
        }
    }
    kept.drain(..kept.len().saturating_sub(KEPT_BYTES));
    String::from_utf8_lossy(&kept).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn it_says_how_a_program_ended() {
        let limit = Duration::from_secs(30);
        let ran = run(&mut shell("echo out; echo err >&2; exit 3"), limit)
            .await
            .unwrap();
        assert_eq!(
            (ran.status.code(), ran.out, ran.err),
            (Some(3), "out\n".into(), "err\n".into())
        );
        let ran = run(&mut shell("seq 1 100000"), limit).await.unwrap();
        assert!(ran.out.len() <= KEPT_BYTES && ran.out.ends_with("\n100000\n"));
        let missing = run(&mut Command::new("no-such-program"), limit).await;
        assert!(missing.is_err_and(|error| error.starts_with("no-such-program cannot be started")));
    }

    #[tokio::test]
    async fn one_that_takes_too_long_is_ended_with_its_children() {
        let started = std::time::Instant::now();
        let late = run(&mut shell("sleep 300 & wait"), Duration::from_millis(50)).await;
        assert!(late.is_err_and(|error| error.contains("did not end within 50ms")));
        assert!(started.elapsed() < Duration::from_secs(60));
    }
}
