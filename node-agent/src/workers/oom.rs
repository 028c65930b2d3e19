//! Whether the kernel has killed processes for lack of memory.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Where the kernel shows the cgroups that limit memory: the first version's, the second's, and the second's beside the first.
const V1: &str = "/sys/fs/cgroup/memory";
const V2: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
/// How often the counter is looked at while workers run.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How old a kill may be to be a worker's that ends now: the kernel takes seconds to free what a large process had.
const RECENT: Duration = Duration::from_secs(30);
/// Most times remembered at which a counter rose: one for each second of those, and some more.
const MAX_RISES: usize = 64;

/// The cgroups of an agent's workers. A cheap handle.
#[derive(Clone, Default)]
pub(crate) struct Cgroups(Arc<Mutex<BTreeMap<PathBuf, Weak<Cgroup>>>>);

/// A cgroup, which all workers in it share.
struct Cgroup {
    files: Files,
    kills: Mutex<Kills>,
}

/// A worker's cgroup. While workers run, somebody calls [`Watched::note`] now and then.
pub(crate) struct Watched(Arc<Cgroup>);

struct Files {
    /// Has a line `oom_kill N`.
    counter: PathBuf,
    limit: PathBuf,
}

/// What a cgroup's counter says once a process has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Memory {
    /// So many processes were killed just before, under this limit.
    RanOut { killed: u64, limit_bytes: Option<u64> },
    /// None was.
    Enough,
}

/// The kills that a counter tells of, each of which is one worker's end at most, and that of none which ends much later.
#[derive(Debug)]
struct Kills {
    /// So many are old, or have been told as a worker's end.
    settled: u64,
    /// When the counter was first seen at each value above that, oldest first.
    rises: VecDeque<(Instant, u64)>,
    /// When it was read last, and what it said.
    last: (Instant, u64),
}

impl Kills {
    fn new(now: Instant, count: u64) -> Self {
        Self {
            settled: count,
            rises: VecDeque::new(),
            last: (now, count),
        }
    }

    fn note(&mut self, now: Instant, count: u64) {
        if count > self.last.1 {
            self.rises.push_back((now, count));
        }
        self.last = (now, count);
        while let Some(&(at, count)) = self.rises.front() {
            if now.saturating_duration_since(at) < RECENT && self.rises.len() <= MAX_RISES {
                break;
            }
            self.settled = self.settled.max(count);
            self.rises.pop_front();
        }
    }

    /// The recent kills that no worker has been told as the cause of its end. One of them is, from now on.
    fn take(&mut self) -> u64 {
        let recent = self.last.1.saturating_sub(self.settled);
        self.settled += u64::from(recent > 0);
        recent
    }
}

impl Cgroups {
    /// Begins to watch the cgroup of a process that has just started; `None` where the kernel does not tell.
    pub(crate) fn watch(&self, pid: u32) -> Option<Watched> {
        let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        candidates(&cgroups)
            .into_iter()
            .find_map(|files| self.watch_files(files))
    }

    fn watch_files(&self, files: Files) -> Option<Watched> {
        let count = files.killed()?;
        let mut known = self.0.lock();
        if let Some(cgroup) = known.get(&files.counter).and_then(Weak::upgrade) {
            return Some(Watched(cgroup));
        }
        known.retain(|_, other| other.strong_count() > 0);
        let path = files.counter.clone();
        let kills = Mutex::new(Kills::new(Instant::now(), count));
        let cgroup = Arc::new(Cgroup { files, kills });
        known.insert(path, Arc::downgrade(&cgroup));
        Some(Watched(cgroup))
    }
}

impl Watched {
    /// Looks at the counter, unless somebody has done so just now.
    pub(crate) fn note(&self, now: Instant) {
        let mut kills = self.0.kills.lock();
        if now.saturating_duration_since(kills.last.0) >= LOOK_EVERY
            && let Some(count) = self.0.files.killed()
        {
            kills.note(now, count);
        }
    }

    /// Whether it is for lack of memory that a process has just been killed, which counts as told; `None` where the kernel
    /// does not tell any more.
    pub(crate) fn tell(&self, now: Instant) -> Option<Memory> {
        let mut kills = self.0.kills.lock();
        kills.note(now, self.0.files.killed()?);
        Some(match kills.take() {
            0 => Memory::Enough,
            killed => Memory::RanOut {
                killed,
                limit_bytes: self.0.files.limit_bytes(),
            },
        })
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
        let cgroups = Cgroups::default();
        let watched = |kills: u32| {
            let files = Files {
                counter: events(kills),
                limit: file("memory.max", "268435456\n"),
            };
            cgroups.watch_files(files).unwrap()
        };
        let began = Instant::now();
        let told = |watched: &Watched, seconds| {
            let memory = watched.tell(began + Duration::from_secs(seconds))?;
            Some(memory.to_string())
        };
        let ran_out = |killed: &str| {
            format!("out of memory: the kernel killed {killed} of its cgroup for it, whose limit is 256 MiB")
        };
        let enough = "not by the kernel for lack of memory";
        // Three were killed before anybody was here.
        let (first, second) = (watched(3), watched(3));
        assert_eq!(told(&first, 1).unwrap(), enough);
        events(4);
        assert_eq!(told(&second, 2).unwrap(), ran_out("1 process"));
        // The same kill is not the end of another, at once or later.
        assert_eq!(told(&first, 3).unwrap(), enough);
        assert_eq!(told(&watched(4), 300).unwrap(), enough);
        // Two that are killed together are both told.
        events(6);
        assert_eq!(told(&second, 301).unwrap(), ran_out("2 processes"));
        assert_eq!(told(&first, 301).unwrap(), ran_out("1 process"));
        // What a worker had started was killed, and the worker went on.
        events(7);
        first.note(began + Duration::from_secs(400));
        first.note(began + Duration::from_secs(431));
        assert_eq!(told(&first, 431).unwrap(), enough);
        file("memory.max", "max\n");
        events(8);
        assert_eq!(
            told(&first, 432).unwrap(),
            "out of memory: the kernel killed 1 process of its cgroup for it"
        );
        file("memory.events", "");
        assert_eq!(told(&first, 433), None);
        // The last one that watches takes what was known along.
        drop((first, second));
        assert_eq!(told(&watched(9), 434).unwrap(), enough);
        assert_eq!(cgroups.0.lock().len(), 1);
    }

    #[test]
    fn rises_are_forgotten_by_age_and_number() {
        let began = Instant::now();
        let mut kills = Kills::new(began, 0);
        for count in 1..=1000 {
            kills.note(began, count);
            assert!(kills.rises.len() <= MAX_RISES);
        }
        assert_eq!(kills.take(), MAX_RISES as u64);
        kills.note(began + RECENT, 1000);
        assert_eq!((kills.take(), kills.rises.len()), (0, 0));
    }
}
