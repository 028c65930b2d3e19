//! Bundles as files, each named by its id.
//!
//! A bundle is written to a temporary file, synced, renamed, and the folder synced. Its age is the file's time of
//! change.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use bytes::Bytes;
use mosec_types::BundleId;

use super::store::{BundleStore, StoreError, Stored, check};

/// Ends the names of files that are being written. No id ends so.
const TEMPORARY: &str = ".tmp";

/// A folder of bundles.
pub(crate) struct BundleFiles {
    dir: PathBuf,
    /// Two puts of one bundle at the same time have files of their own.
    writes: AtomicU64,
}

impl BundleFiles {
    /// Opens or creates the folder, and removes what interrupted writes left.
    pub(crate) fn open(dir: &Path) -> Result<Self, StoreError> {
        let this = Self {
            dir: dir.to_owned(),
            writes: AtomicU64::new(0),
        };
        fs::create_dir_all(dir).map_err(|source| error(dir, source))?;
        for name in this.names()?.iter().filter(|name| name.ends_with(TEMPORARY)) {
            let path = dir.join(name);
            fs::remove_file(&path).map_err(|source| error(&path, source))?;
        }
        Ok(this)
    }

    fn path(&self, id: &BundleId) -> PathBuf {
        self.dir.join(id.to_string())
    }

    fn names(&self) -> Result<Vec<String>, StoreError> {
        let list = || -> io::Result<Vec<_>> {
            let names =
                fs::read_dir(&self.dir)?.map(|item| Ok(item?.file_name().to_string_lossy().into_owned()));
            names.collect()
        };
        list().map_err(|source| error(&self.dir, source))
    }

    fn write(&self, temporary: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = File::create(temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(temporary, path)?;
        // Without it, the rename itself may be lost with the power.
        File::open(&self.dir)?.sync_all()
    }
}

impl BundleStore for BundleFiles {
    fn put(&self, id: &BundleId, bytes: &Bytes) -> Result<(), StoreError> {
        check(id, bytes)?;
        let number = self.writes.fetch_add(1, Ordering::Relaxed);
        let temporary = self.dir.join(format!("{id}.{number}{TEMPORARY}"));
        let path = self.path(id);
        self.write(&temporary, &path, bytes).map_err(|source| {
            // A full disk is not to be filled by the remains of what did not fit.
            let _ = fs::remove_file(&temporary);
            error(&path, source)
        })
    }

    fn read(&self, id: &BundleId) -> Result<Option<Bytes>, StoreError> {
        let path = self.path(id);
        let bytes = match fs::read(&path) {
            Ok(bytes) => Bytes::from(bytes),
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(error(&path, source)),
        };
        match check(id, &bytes) {
            Ok(()) => Ok(Some(bytes)),
            Err(damage) => {
                tracing::warn!(path = %path.display(), error = %damage, "a damaged bundle is removed");
                self.remove(id)?;
                Ok(None)
            }
        }
    }

    fn renew(&self, id: &BundleId) -> Result<bool, StoreError> {
        let path = self.path(id);
        let renewed = File::options()
            .append(true)
            .open(&path)
            .and_then(|file| file.set_modified(SystemTime::now()));
        match renewed {
            Ok(()) => Ok(true),
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(error(&path, source)),
        }
    }

    fn list(&self) -> Result<Vec<Stored>, StoreError> {
        let mut stored = Vec::new();
        for name in self.names()? {
            // Whatever else is there is not ours to count or remove.
            let Ok(id) = name.parse::<BundleId>() else {
                continue;
            };
            let path = self.path(&id);
            let changed = match fs::metadata(&path).and_then(|found| found.modified()) {
                Ok(changed) => changed,
                Err(missing) if missing.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(error(&path, source)),
            };
            // A clock that was set back makes nothing old.
            let age = SystemTime::now().duration_since(changed).unwrap_or_default();
            stored.push(Stored { id, age });
        }
        stored.sort_by_key(|stored| stored.id);
        Ok(stored)
    }

    fn remove(&self, id: &BundleId) -> Result<(), StoreError> {
        let path = self.path(id);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(error(&path, source)),
            _ => Ok(()),
        }
    }
}

fn error(path: &Path, source: io::Error) -> StoreError {
    StoreError::Io {
        path: path.to_owned(),
        source,
    }
}
