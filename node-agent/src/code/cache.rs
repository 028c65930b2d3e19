//! Folders that are made once, shared by many replicas, and removed when they are too many.
//!
//! A folder `name` is complete once the file `name.complete` is beside it, whose time of change is the last use. What has
//! no such file was interrupted, and is removed at the next start or try.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, WeakShared};
use parking_lot::Mutex;

use super::CodeError;
use super::surplus::{Idle, Keep, surplus};

const COMPLETE: &str = ".complete";
/// Begins the names of folders that are being removed.
const REMOVED: &str = ".removed-";

type Making = WeakShared<BoxFuture<'static, Result<(), CodeError>>>;

/// Keeps a folder from being removed.
#[derive(Debug, Clone)]
pub(crate) struct Hold(#[expect(dead_code, reason = "its life is what counts")] Arc<()>);

/// A folder of folders.
pub(crate) struct Cache {
    dir: PathBuf,
    keep: Keep,
    /// Whoever looks whether a folder is held removes it under the same lock.
    holds: Mutex<HashMap<String, Weak<()>>>,
    making: Mutex<HashMap<String, Making>>,
}

impl Cache {
    /// Opens or makes the folder, and removes what was interrupted.
    pub(crate) fn open(dir: PathBuf, keep: Keep) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        let this = Self {
            dir,
            keep,
            holds: Mutex::default(),
            making: Mutex::default(),
        };
        let complete: BTreeSet<_> = this.complete()?.into_iter().collect();
        for name in this.names()? {
            let of = name.strip_suffix(COMPLETE).unwrap_or(&name);
            if !complete.contains(of) {
                remove(&this.dir.join(name))?;
            }
        }
        Ok(this)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A folder, made by `make` where it is not there: once for all who ask at the same time, whose error is the same too.
    ///
    /// `make` is dropped when nobody waits for it any more.
    pub(crate) async fn ensure(
        &self,
        name: &str,
        make: impl FnOnce(PathBuf) -> BoxFuture<'static, Result<(), CodeError>>,
    ) -> Result<Hold, CodeError> {
        let hold = self.hold(name);
        if self.is_complete(name) {
            self.note_use(name);
            return Ok(hold);
        }
        let making = {
            let mut all = self.making.lock();
            all.retain(|_, making| making.upgrade().is_some());
            match all.get(name).and_then(WeakShared::upgrade) {
                Some(making) => making,
                None => {
                    let making = self.make(name, make).shared();
                    all.extend(making.downgrade().map(|making| (name.to_owned(), making)));
                    making
                }
            }
        };
        making.await?;
        Ok(hold)
    }

    fn make(
        &self,
        name: &str,
        make: impl FnOnce(PathBuf) -> BoxFuture<'static, Result<(), CodeError>>,
    ) -> BoxFuture<'static, Result<(), CodeError>> {
        let path = self.path(name);
        let marker = self.marker(name);
        let making = make(path.clone());
        async move {
            // Of a try that was interrupted.
            remove(&path).map_err(|source| CodeError::io(&path, &source))?;
            if let Err(error) = making.await {
                // Whatever it has left is of no use, and may be large.
                let _ = remove(&path);
                return Err(error);
            }
            let marked = File::create(&marker).and_then(|file| file.sync_all());
            marked.map_err(|source| CodeError::io(&marker, &source))
        }
        .boxed()
    }

    fn hold(&self, name: &str) -> Hold {
        let mut holds = self.holds.lock();
        holds.retain(|_, hold| hold.strong_count() > 0);
        if let Some(held) = holds.get(name).and_then(Weak::upgrade) {
            return Hold(held);
        }
        let hold = Arc::new(());
        holds.insert(name.to_owned(), Arc::downgrade(&hold));
        Hold(hold)
    }

    /// Removes what is complete, not `named`, held by nobody, and more than is kept. Blocks.
    pub(crate) fn sweep(&self, named: &BTreeSet<String>) -> io::Result<()> {
        let mut idle = Vec::new();
        for name in self.complete()?.into_iter().filter(|name| !named.contains(name)) {
            let is_held = self
                .holds
                .lock()
                .get(&name)
                .is_some_and(|hold| hold.strong_count() > 0);
            if is_held {
                continue;
            }
            let used = fs::metadata(self.marker(&name)).and_then(|found| found.modified())?;
            idle.push(Idle {
                since: SystemTime::now().duration_since(used).unwrap_or_default(),
                bytes: bytes_of(&self.path(&name)),
                name,
            });
        }
        for name in surplus(idle, self.keep) {
            if let Some(removed) = self.take_away(&name)? {
                fs::remove_dir_all(removed)?;
                tracing::info!(path = %self.path(&name).display(), "code that nothing needs is removed");
            }
        }
        Ok(())
    }

    /// Gives a folder another name, under which nobody finds it; `None` where somebody has come to hold it.
    fn take_away(&self, name: &str) -> io::Result<Option<PathBuf>> {
        let holds = self.holds.lock();
        if holds.get(name).is_some_and(|hold| hold.strong_count() > 0) {
            return Ok(None);
        }
        let removed = self.dir.join(format!("{REMOVED}{name}"));
        fs::remove_file(self.marker(name))?;
        fs::rename(self.path(name), &removed)?;
        Ok(Some(removed))
    }

    fn is_complete(&self, name: &str) -> bool {
        self.marker(name).exists() && self.path(name).is_dir()
    }

    fn note_use(&self, name: &str) {
        let marker = File::options().append(true).open(self.marker(name));
        // Worth no failed start: it is only what is removed first.
        let _ = marker.and_then(|file| file.set_modified(SystemTime::now()));
    }

    fn marker(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}{COMPLETE}"))
    }

    fn complete(&self) -> io::Result<Vec<String>> {
        let names = self.names()?.into_iter();
        let names = names.filter_map(|name| name.strip_suffix(COMPLETE).map(str::to_owned));
        Ok(names.filter(|name| self.path(name).is_dir()).collect())
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let name = |item: io::Result<fs::DirEntry>| Ok(item?.file_name().to_string_lossy().into_owned());
        fs::read_dir(&self.dir)?.map(name).collect()
    }
}

/// Removes a file or a folder, if it is there.
fn remove(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    match found.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    }
}

/// What a folder holds. Files that cannot be read count as nothing.
fn bytes_of(folder: &Path) -> u64 {
    let mut bytes = 0;
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for item in fs::read_dir(folder).into_iter().flatten().flatten() {
            match item.metadata() {
                Ok(found) if found.is_dir() => open.push(item.path()),
                Ok(found) => bytes += found.len(),
                Err(_) => {}
            }
        }
    }
    bytes
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
