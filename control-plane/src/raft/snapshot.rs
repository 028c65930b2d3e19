//! Snapshots in files of their own, durable before anyone relies on them.
//!
//! A snapshot is written to a temporary file, synced, renamed, and the directory synced; then older ones go. sled
//! holds none of it: it would keep large values in files that it never syncs.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::SnapshotMeta;
use super::codec::{self, CodecError};

const SUFFIX: &str = "snapshot";
const TEMPORARY: &str = "tmp";

/// Why a snapshot could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("snapshot {path:?} could not be used")]
    Io { path: PathBuf, source: io::Error },
    #[error("snapshot {path:?} is unreadable: {problem}")]
    Unreadable { path: PathBuf, problem: CodecError },
    #[error("the snapshot could not be encoded")]
    Encode(#[source] CodecError),
}

/// A snapshot: what it stands for, and a record of the state.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    pub meta: SnapshotMeta,
    pub state: Vec<u8>,
}

impl Stored {
    /// The file's content: length of the first record (4 bytes, little endian), record of `meta`, record of the state.
    fn to_bytes(&self) -> Result<Vec<u8>, CodecError> {
        let meta = codec::encode(&self.meta)?;
        let length = u32::try_from(meta.len()).expect("a membership of a few nodes is small");
        Ok([&length.to_le_bytes(), meta.as_slice(), &self.state].concat())
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        let short = || CodecError::Short(bytes.len());
        let (length, rest) = bytes.split_first_chunk().ok_or_else(short)?;
        let length = u32::from_le_bytes(*length) as usize;
        let (meta, state) = rest.split_at_checked(length).ok_or_else(short)?;
        codec::check(state)?;
        Ok(Self {
            meta: codec::decode(meta)?,
            state: state.to_vec(),
        })
    }
}

/// The directory of snapshots. Methods block.
#[derive(Debug, Clone)]
pub struct SnapshotDir {
    dir: PathBuf,
}

impl SnapshotDir {
    /// Opens or creates the directory, and removes what an interrupted write left.
    pub fn open(dir: &Path) -> Result<Self, SnapshotError> {
        let this = Self { dir: dir.to_owned() };
        fs::create_dir_all(dir).map_err(|source| this.error(dir, source))?;
        for path in this.files(TEMPORARY)? {
            fs::remove_file(&path).map_err(|source| this.error(&path, source))?;
        }
        Ok(this)
    }

    /// The newest snapshot. One that is damaged is an error: the log it covers is gone.
    pub fn newest(&self) -> Result<Option<Stored>, SnapshotError> {
        let Some(path) = self.files(SUFFIX)?.pop() else {
            return Ok(None);
        };
        let bytes = fs::read(&path).map_err(|source| self.error(&path, source))?;
        Stored::from_bytes(&bytes)
            .map(Some)
            .map_err(|problem| SnapshotError::Unreadable { path, problem })
    }

    /// Makes a snapshot durable and removes older ones.
    pub fn save(&self, snapshot: &Stored) -> Result<(), SnapshotError> {
        let bytes = snapshot.to_bytes().map_err(SnapshotError::Encode)?;
        let index = snapshot.meta.last_log_id.map_or(0, |id| id.index);
        // Zero-padded, so that names sort as indexes do.
        let path = self.dir.join(format!("{index:020}.{SUFFIX}"));
        let temporary = path.with_extension(TEMPORARY);
        write_durably(&temporary, &path, &bytes).map_err(|source| self.error(&path, source))?;
        for older in self.files(SUFFIX)?.into_iter().filter(|other| *other < path) {
            fs::remove_file(&older).map_err(|source| self.error(&older, source))?;
        }
        Ok(())
    }

    /// Files with the extension, in the order of their names.
    fn files(&self, extension: &str) -> Result<Vec<PathBuf>, SnapshotError> {
        let list = || -> io::Result<Vec<PathBuf>> {
            let mut paths = fs::read_dir(&self.dir)?
                .map(|item| Ok(item?.path()))
                .collect::<io::Result<Vec<_>>>()?;
            paths.retain(|path| path.extension().is_some_and(|found| found == extension));
            paths.sort();
            Ok(paths)
        };
        list().map_err(|source| self.error(&self.dir, source))
    }

    fn error(&self, path: &Path, source: io::Error) -> SnapshotError {
        SnapshotError::Io {
            path: path.to_owned(),
            source,
        }
    }
}

fn write_durably(temporary: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(temporary, path)?;
    let parent = path.parent().unwrap_or(Path::new("."));
    // Without it, the rename itself may be lost with the power.
    File::open(parent)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::LogId;
    use openraft::CommittedLeaderId;

    fn snapshot(index: u64) -> Stored {
        let last_log_id = Some(LogId::new(CommittedLeaderId::new(1, 1), index));
        let meta = SnapshotMeta {
            last_log_id,
            snapshot_id: format!("1-{index}"),
            ..Default::default()
        };
        Stored {
            meta,
            state: codec::encode(&index).unwrap(),
        }
    }

    #[test]
    fn the_newest_snapshot_is_kept() {
        let root = tempfile::tempdir().unwrap();
        let dir = SnapshotDir::open(&root.path().join("snapshots")).unwrap();
        assert_eq!(dir.newest().unwrap(), None);
        for index in [9, 10, 100] {
            dir.save(&snapshot(index)).unwrap();
            assert_eq!(dir.newest().unwrap(), Some(snapshot(index)));
        }
        assert_eq!(dir.files(SUFFIX).unwrap().len(), 1);
    }

    #[test]
    fn a_half_written_snapshot_is_ignored_and_a_damaged_one_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        let dir = SnapshotDir::open(root.path()).unwrap();
        dir.save(&snapshot(5)).unwrap();
        fs::write(root.path().join("00000000000000000009.tmp"), b"half").unwrap();
        let dir = SnapshotDir::open(root.path()).unwrap();
        assert_eq!(dir.newest().unwrap(), Some(snapshot(5)));
        assert_eq!(dir.files(TEMPORARY).unwrap().len(), 0);

        let path = dir.files(SUFFIX).unwrap().remove(0);
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let error = dir.newest().unwrap_err().to_string();
            assert!(error.contains("00000000000000000005.snapshot"), "{error}");
        }
    }
}
