//! A memory cgroup of one test's own, where this machine lets it have one.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Names of the cgroups begin so; the rest is the test process's id.
const PREFIX: &str = "mosec-test-";

/// A cgroup below this process's own that limits memory. Dropping it removes it; processes that are still in it go back.
pub struct MemoryCgroup {
    parent: PathBuf,
    dir: PathBuf,
}

impl MemoryCgroup {
    /// Makes a cgroup with a limit. An error says why there can be none here.
    pub fn new(limit_bytes: u64) -> Result<Self, String> {
        let (parent, limits): (_, &[&str]) = parent()?;
        remove_stale(&parent);
        let dir = parent.join(format!("{PREFIX}{}", std::process::id()));
        fs::create_dir(&dir).map_err(|error| format!("cannot make {}: {error}", dir.display()))?;
        let cgroup = Self { parent, dir };
        let (needed, wanted) = limits.split_first().expect("each version has one");
        let set = |name: &str| fs::write(cgroup.dir.join(name), limit_bytes.to_string());
        set(needed).map_err(|error| format!("cannot set {needed} in {}: {error}", cgroup.dir.display()))?;
        for name in wanted {
            // No swap beyond the limit, where swap is counted at all.
            let _ = set(name);
        }
        Ok(cgroup)
    }

    /// Moves a process into it. What it starts from then on is in it, too.
    pub fn add(&self, pid: u32) -> anyhow::Result<()> {
        Ok(fs::write(self.dir.join("cgroup.procs"), pid.to_string())?)
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        let end = Instant::now() + Duration::from_secs(5);
        while fs::remove_dir(&self.dir).is_err() && Instant::now() < end {
            for pid in fs::read_to_string(self.dir.join("cgroup.procs"))
                .unwrap_or_default()
                .lines()
            {
                let _ = fs::write(self.parent.join("cgroup.procs"), pid);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// This process's own cgroup, and the files that limit the memory of one: the limit, then those for swap.
fn parent() -> Result<(PathBuf, &'static [&'static str]), String> {
    let cgroups = fs::read_to_string("/proc/self/cgroup").map_err(|error| format!("no cgroups: {error}"))?;
    let path_of = |wanted: &dyn Fn(&str, &str) -> bool| {
        cgroups.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            wanted(number, controllers).then(|| path.trim_start_matches('/').to_owned())
        })
    };
    let is_there = |dir: &Path| dir.join("cgroup.procs").exists();
    if let Some(path) = path_of(&|_, controllers| controllers.split(',').any(|name| name == "memory")) {
        let dir = Path::new("/sys/fs/cgroup/memory").join(path);
        if is_there(&dir) {
            return Ok((dir, &["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]));
        }
    }
    if let Some(path) = path_of(&|number, controllers| number == "0" && controllers.is_empty()) {
        let dir = Path::new("/sys/fs/cgroup").join(path);
        let delegated = fs::read_to_string(dir.join("cgroup.subtree_control")).unwrap_or_default();
        if is_there(&dir) && delegated.split_whitespace().any(|name| name == "memory") {
            return Ok((dir, &["memory.max"]));
        }
    }
    Err("this process has no cgroup below which memory can be limited".into())
}

/// Removes what test processes that were killed have left.
fn remove_stale(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            drop(MemoryCgroup {
                parent: parent.to_owned(),
                dir: entry.path(),
            });
        }
    }
}
