//! Whether the kernel has killed processes for lack of memory.

use std::path::{Path, PathBuf};

/// Where the kernel shows the cgroups that limit memory: the first version's, the second's, and the second's beside the first.
const V1: &str = "/sys/fs/cgroup/memory";
const V2: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// A process's cgroup, and how many of its processes the kernel had killed for lack of memory when this one started.
pub(crate) struct Watched {
    files: Files,
    before: u64,
}

struct Files {
    /// Has a line `oom_kill N`.
    counter: PathBuf,
    limit: PathBuf,
}

/// What a cgroup's counter says once a process has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Memory {
    /// So many processes were killed meanwhile, under this limit.
    RanOut { killed: u64, limit_bytes: Option<u64> },
    /// None was.
    Enough,
}

impl Watched {
    /// Begins to watch the cgroup of a process that has just started; `None` where the kernel does not tell.
    pub(crate) fn new(pid: u32) -> Option<Self> {
        let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        candidates(&cgroups).into_iter().find_map(|files| {
            let before = files.killed()?;
            Some(Self { files, before })
        })
    }

    /// What has become of memory since; `None` where the kernel does not tell any more.
    pub(crate) fn look(&self) -> Option<Memory> {
        match self.files.killed()?.saturating_sub(self.before) {
            0 => Some(Memory::Enough),
            killed => Some(Memory::RanOut {
                killed,
                limit_bytes: self.files.limit_bytes(),
            }),
        }
    }
}

impl Files {
    fn killed(&self) -> Option<u64> {
        let text = std::fs::read_to_string(&self.counter).ok()?;
        text.lines()
            .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
    }

    fn limit_bytes(&self) -> Option<u64> {
        // Without a limit the second version says `max`, and the first a number that no machine has.
        const NONE: u64 = 1 << 60;
        let text = std::fs::read_to_string(&self.limit).ok()?;
        text.trim().parse().ok().filter(|&limit| limit < NONE)
    }
}

/// Where the counters of a process may be, by its `/proc/PID/cgroup`. In a container the path may be the host's, while
/// what is mounted begins at the container's own cgroup.
fn candidates(cgroups: &str) -> Vec<Files> {
    let mut found = Vec::new();
    for line in cgroups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(number), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let path = path.trim_start_matches('/');
        let mut add = |root: &str, counter: &str, limit: &str| {
            for folder in [Path::new(root).join(path), root.into()] {
                found.push(Files {
                    counter: folder.join(counter),
                    limit: folder.join(limit),
                });
            }
        };
        if controllers.split(',').any(|name| name == "memory") {
            add(V1, "memory.oom_control", "memory.limit_in_bytes");
        } else if number == "0" && controllers.is_empty() {
            V2.iter()
                .for_each(|root| add(root, "memory.events", "memory.max"));
        }
    }
    found
}

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Self::Enough => f.write_str("not by the kernel for lack of memory"),
            Self::RanOut { killed, limit_bytes } => {
                let plural = if killed == 1 { "" } else { "es" };
                write!(
                    f,
                    "out of memory: the kernel killed {killed} process{plural} of its cgroup for it"
                )?;
                match limit_bytes {
                    Some(limit) => write!(f, ", whose limit is {} MiB", limit >> 20),
                    None => Ok(()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(cgroups: &str) -> Vec<String> {
        let counter = |files: Files| files.counter.to_string_lossy().into_owned();
        candidates(cgroups).into_iter().map(counter).collect()
    }

    #[test]
    fn both_versions_are_looked_for() {
        assert_eq!(
            counters("4:memory:/a/b\n1:cpu:/\nnonsense\n"),
            [
                "/sys/fs/cgroup/memory/a/b/memory.oom_control",
                "/sys/fs/cgroup/memory/memory.oom_control"
            ]
        );
        assert_eq!(
            counters("0::/x.slice\n")[..2],
            [
                "/sys/fs/cgroup/x.slice/memory.events",
                "/sys/fs/cgroup/memory.events"
            ]
        );
        assert_eq!(counters(""), [""; 0]);
    }

    #[test]
    fn a_counter_that_has_risen_is_a_cause() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let events = |kills: u32| {
            file(
                "memory.events",
                &format!("low 0\noom 7\noom_kill {kills}\noom_group_kill 0\n"),
            )
        };
        let files = Files {
            counter: events(3),
            limit: file("memory.max", "268435456\n"),
        };
        let before = files.killed().unwrap();
        let watched = Watched { files, before };
        let told = |watched: &Watched| watched.look().map(|memory| memory.to_string());
        assert_eq!(told(&watched).unwrap(), "not by the kernel for lack of memory");
        events(4);
        assert_eq!(
            told(&watched).unwrap(),
            "out of memory: the kernel killed 1 process of its cgroup for it, whose limit is 256 MiB"
        );
        file("memory.max", "max\n");
        events(6);
        assert_eq!(
            told(&watched).unwrap(),
            "out of memory: the kernel killed 3 processes of its cgroup for it"
        );
        file("memory.events", "");
        assert_eq!(told(&watched), None);
    }
}
