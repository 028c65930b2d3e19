//! Makes a folder of a bundle. Nothing in the archive is trusted: its hash says who it is, not that it means well.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};

use mosec_types::BundleId;
use tar::EntryType;

use crate::links::{self, LeadsOut};
use crate::{MAX_ENTRIES, id_of};

/// What the archive's own headers may take beyond its files: a header of 512 bytes, as much padding, and a long name
/// with its header.
const PER_ENTRY_BYTES: u64 = 8 * 1024;

/// Why a bundle was not unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnpackError {
    #[error("the bundle's bytes are of {found}, expected {expected}")]
    Hash { expected: BundleId, found: BundleId },
    #[error("the bundle cannot be read")]
    Read(#[source] io::Error),
    #[error("{} cannot be written", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("the bundle has an entry {path:?}, which is not a path inside the folder")]
    Outside { path: String },
    #[error("the bundle has {path:?} twice, or in something that is no folder of it")]
    Misplaced { path: String },
    #[error("the bundle's entry {path:?} is neither a file, a folder nor a link")]
    Special { path: String },
    #[error(transparent)]
    LeadsOut(#[from] LeadsOut),
    #[error("the bundle unpacks to more than {limit} bytes")]
    TooLarge { limit: u64 },
    #[error("the bundle has more than {MAX_ENTRIES} entries")]
    TooMany,
}

/// Unpacks a bundle as the folder `to`, which appears as a whole or not at all.
///
/// Everything is on disk before it appears. `to` must not exist; its parent must. `max_bytes`: most that the files may take.
pub fn unpack(bytes: &[u8], id: &BundleId, to: &Path, max_bytes: u64) -> Result<(), UnpackError> {
    let found = id_of(bytes);
    if found != *id {
        return Err(UnpackError::Hash { expected: *id, found });
    }
    let parent = to.parent().unwrap_or(Path::new("."));
    let temporary = tempfile::Builder::new()
        .prefix(".unpacking-")
        .tempdir_in(parent)
        .map_err(|source| write_error(parent, source))?;
    let folder = temporary.path().join("folder");
    make_folder(&folder)?;
    let mut target = Target {
        root: folder.clone(),
        folders: BTreeSet::from([PathBuf::new()]),
        others: BTreeSet::new(),
        links: BTreeMap::new(),
        left: max_bytes,
        limit: max_bytes,
    };
    target.fill(bytes)?;
    target.make_links()?;
    target.sync()?;
    fs::rename(&folder, to).map_err(|source| write_error(to, source))?;
    sync(parent)
}

/// A folder that is being filled.
struct Target {
    root: PathBuf,
    /// Folders that are there, relative to the root. Files and links go into these alone, so never through a link.
    folders: BTreeSet<PathBuf>,
    others: BTreeSet<PathBuf>,
    /// Made last, when all of them are known.
    links: BTreeMap<PathBuf, PathBuf>,
    left: u64,
    limit: u64,
}

impl Target {
    fn fill(&mut self, bytes: &[u8]) -> Result<(), UnpackError> {
        let decoder = zstd::Decoder::with_buffer(bytes).map_err(UnpackError::Read)?;
        // Whatever the headers say, so much is decompressed and no more.
        let most = self.limit + PER_ENTRY_BYTES * MAX_ENTRIES as u64;
        let mut archive = tar::Archive::new(decoder.take(most));
        for (count, entry) in archive.entries().map_err(UnpackError::Read)?.enumerate() {
            if count >= MAX_ENTRIES {
                return Err(UnpackError::TooMany);
            }
            self.add(entry.map_err(UnpackError::Read)?)?;
        }
        Ok(())
    }

    fn add(&mut self, mut entry: tar::Entry<'_, impl Read>) -> Result<(), UnpackError> {
        let said = entry.path().map_err(UnpackError::Read)?.into_owned();
        let text = || said.to_string_lossy().into_owned();
        let path = inside(&said).ok_or_else(|| UnpackError::Outside { path: text() })?;
        let parent = path.parent().unwrap_or(Path::new(""));
        let is_taken = self.folders.contains(&path) || self.others.contains(&path);
        if is_taken || !self.folders.contains(parent) {
            return Err(UnpackError::Misplaced { path: text() });
        }
        match entry.header().entry_type() {
            EntryType::Directory => {
                make_folder(&self.root.join(&path))?;
                self.folders.insert(path);
            }
            EntryType::Symlink => {
                let target = entry.link_name().map_err(UnpackError::Read)?;
                let target = target.ok_or_else(|| UnpackError::Special { path: text() })?;
                self.links.insert(path.clone(), target.into_owned());
                self.others.insert(path);
            }
            EntryType::Regular => {
                let bytes = entry.size();
                let limit = self.limit;
                self.left = self
                    .left
                    .checked_sub(bytes)
                    .ok_or(UnpackError::TooLarge { limit })?;
                let executable = entry.header().mode().map_err(UnpackError::Read)? & 0o100 != 0;
                self.write(&path, executable, &mut entry)?;
                self.others.insert(path);
            }
            _ => return Err(UnpackError::Special { path: text() }),
        }
        Ok(())
    }

    fn write(&self, path: &Path, executable: bool, content: &mut impl Read) -> Result<(), UnpackError> {
        let full = self.root.join(path);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        options.mode(if executable { 0o755 } else { 0o644 });
        let failed = |source| write_error(&full, source);
        let mut file = options.open(&full).map_err(failed)?;
        io::copy(content, &mut file).map_err(failed)?;
        file.sync_all().map_err(failed)
    }

    fn make_links(&self) -> Result<(), UnpackError> {
        links::check(&self.links)?;
        for (link, target) in &self.links {
            let full = self.root.join(link);
            std::os::unix::fs::symlink(target, &full).map_err(|source| write_error(&full, source))?;
        }
        Ok(())
    }

    /// Files are synced as they are written; what is in a folder is its own.
    fn sync(&self) -> Result<(), UnpackError> {
        self.folders
            .iter()
            .try_for_each(|folder| sync(&self.root.join(folder)))
    }
}

/// The path without what changes nothing, if it stays below the root by its text.
fn inside(path: &Path) -> Option<PathBuf> {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    (!clean.as_os_str().is_empty()).then_some(clean)
}

fn make_folder(path: &Path) -> Result<(), UnpackError> {
    let made = DirBuilder::new().mode(0o755).create(path);
    made.map_err(|source| write_error(path, source))
}

fn sync(folder: &Path) -> Result<(), UnpackError> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|source| write_error(folder, source))
}

fn write_error(path: &Path, source: io::Error) -> UnpackError {
    UnpackError::Write {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
