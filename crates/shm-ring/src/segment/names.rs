//! Names in `/dev/shm`: `<prefix>-<pid>-<start>-<number>`, where `start` tells a process from a later one of its id.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::shm;

const FOLDER: &str = "/dev/shm";

/// A name that no other segment of this or any other living process has.
pub(super) fn next(prefix: &str) -> String {
    static STARTED: OnceLock<u64> = OnceLock::new();
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let pid = std::process::id();
    let started = STARTED.get_or_init(|| start_ticks(pid).unwrap_or(0));
    format!(
        "/{prefix}-{pid}-{started}-{}",
        COUNT.fetch_add(1, Ordering::Relaxed)
    )
}

/// Removes the names that processes left behind which were killed while they made a segment; returns how many.
///
/// Names of living processes stay. Call it when an agent starts.
pub fn sweep_stale(prefix: &str) -> io::Result<usize> {
    let mut removed = 0;
    for name in existing(prefix)? {
        let Some((pid, started)) = owner(prefix, &name) else {
            continue;
        };
        if start_ticks(pid) != Some(started) {
            shm::unlink(format!("/{name}"))?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// The names that start with `prefix`.
pub(super) fn existing(prefix: &str) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(FOLDER)? {
        if let Ok(name) = entry?.file_name().into_string()
            && owner(prefix, &name).is_some()
        {
            names.push(name);
        }
    }
    Ok(names)
}

/// The process id and start in a name of ours.
fn owner(prefix: &str, name: &str) -> Option<(u32, u64)> {
    let mut parts = name.strip_prefix(prefix)?.strip_prefix('-')?.split('-');
    let owner = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let _number: u32 = parts.next()?.parse().ok()?;
    parts.next().is_none().then_some(owner)
}

/// When a process started, in clock ticks since boot; `None` where there is none of that id.
fn start_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the command in parentheses and may hold spaces; the 22nd is the start.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_its_process() {
        let name = next("mosec-x");
        let pid = std::process::id();
        assert_eq!(
            owner("mosec-x", &name[1..]),
            Some((pid, start_ticks(pid).unwrap()))
        );
        for other in [
            "mosec-y-1-2-3",
            "mosec-x-1-2",
            "mosec-x-1-2-3-4",
            "mosec-x-a-2-3",
            "mosec-x1-2-3",
        ] {
            assert_eq!(owner("mosec-x", other), None, "{other}");
        }
    }

    #[test]
    fn only_names_of_dead_processes_are_swept() {
        let prefix = format!("mosec-sweep-{}", std::process::id());
        let pid = std::process::id();
        let started = start_ticks(pid).unwrap();
        let living = format!("{prefix}-{pid}-{started}-0");
        let dead = format!("{prefix}-{pid}-{}-0", started + 1);
        for name in [&living, &dead] {
            std::fs::write(format!("{FOLDER}/{name}"), b"").unwrap();
        }
        let removed = sweep_stale(&prefix).unwrap();
        let left = existing(&prefix).unwrap();
        std::fs::remove_file(format!("{FOLDER}/{living}")).unwrap();
        assert_eq!((removed, left), (1, vec![living]));
    }
}
