//! Makes a bundle of a folder.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};

use mosec_types::BundleId;
use tar::{EntryType, Header};

use crate::links::LeadsOut;
use crate::walk::{self, Entry};
use crate::{IGNORE_FILE, MAX_ENTRIES, MAX_UNPACKED_BYTES, id_of};

/// zstd's default: higher levels cost much more time than the bytes they save.
const LEVEL: i32 = 3;
/// Time of change of every file, 1980-01-01: what zip files, which Python makes of packages, can say at the earliest.
const CHANGED: u64 = 315_532_800;
/// Entries that an error about the size names.
const SHOWN: usize = 5;

/// A folder as one file.
#[derive(Clone)]
pub struct Packed {
    pub id: BundleId,
    pub bytes: Vec<u8>,
    /// Regular files in it.
    pub files: usize,
    /// What the files take when they are unpacked.
    pub unpacked_bytes: u64,
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Packed({}, {} files)", self.id, self.files)
    }
}

/// Why a folder cannot be packed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    #[error("{} is no folder", .0.display())]
    NoFolder(PathBuf),
    #[error("{} cannot be read", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("the folder cannot be listed")]
    Walk(#[source] ignore::Error),
    #[error(transparent)]
    LeadsOut(#[from] LeadsOut),
    #[error("{} is {what}; expected files, folders and links ({IGNORE_FILE} names what stays out)", path.display())]
    Special { path: PathBuf, what: &'static str },
    #[error("{} has changed while it was packed", .0.display())]
    Changed(PathBuf),
    #[error("the folder {} has {found} files and folders, more than {MAX_ENTRIES} ({IGNORE_FILE} names what stays out)", path.display())]
    TooMany { path: PathBuf, found: usize },
    #[error(
        "the folder {} takes more than {} {state}; its largest files are {largest} ({IGNORE_FILE} names what stays out)",
        path.display(),
        in_units(*limit)
    )]
    TooLarge {
        path: PathBuf,
        limit: u64,
        /// `compressed` or `unpacked`.
        state: &'static str,
        largest: String,
    },
    #[error("the archive could not be written")]
    Write(#[source] io::Error),
}

impl PackError {
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }
}

/// Packs the folder `root`. The same content gives the same bytes, wherever the folder is.
///
/// `max_bytes`: most that the bundle may take.
pub fn pack(root: &Path, max_bytes: u64) -> Result<Packed, PackError> {
    let entries = walk::entries(root)?;
    if entries.len() > MAX_ENTRIES {
        return Err(PackError::TooMany {
            path: root.to_owned(),
            found: entries.len(),
        });
    }
    let too_large = |limit, state| PackError::TooLarge {
        path: root.to_owned(),
        limit,
        state,
        largest: largest(&entries),
    };
    let sizes = entries.values().map(size_of);
    let unpacked_bytes = sizes.sum();
    if unpacked_bytes > MAX_UNPACKED_BYTES {
        return Err(too_large(MAX_UNPACKED_BYTES, "unpacked"));
    }
    let bounded = Bounded {
        bytes: Vec::new(),
        limit: usize::try_from(max_bytes).unwrap_or(usize::MAX),
        is_full: false,
    };
    let encoder = zstd::Encoder::new(bounded, LEVEL).map_err(PackError::Write)?;
    let mut archive = Archive {
        tar: tar::Builder::new(encoder),
    };
    for (path, entry) in &entries {
        if let Err(error) = archive.add(root, path, entry) {
            let is_full = archive.tar.get_ref().get_ref().is_full;
            return Err(if is_full {
                too_large(max_bytes, "compressed")
            } else {
                error
            });
        }
    }
    let bounded = archive.tar.into_inner().and_then(zstd::Encoder::finish);
    let bytes = match bounded {
        Ok(bounded) => bounded.bytes,
        // The last bytes may be the ones too many.
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
            return Err(too_large(max_bytes, "compressed"));
        }
        Err(error) => return Err(PackError::Write(error)),
    };
    Ok(Packed {
        id: id_of(&bytes),
        bytes,
        files: entries
            .values()
            .filter(|entry| matches!(entry, Entry::File { .. }))
            .count(),
        unpacked_bytes,
    })
}

struct Archive<'a> {
    tar: tar::Builder<zstd::Encoder<'a, Bounded>>,
}

impl Archive<'_> {
    fn add(&mut self, root: &Path, path: &Path, entry: &Entry) -> Result<(), PackError> {
        match entry {
            Entry::Folder => {
                let mut header = header(EntryType::Directory, 0o755, 0);
                self.tar.append_data(&mut header, path, io::empty())
            }
            Entry::Link { target } => {
                let mut header = header(EntryType::Symlink, 0o777, 0);
                self.tar.append_link(&mut header, path, target)
            }
            Entry::File { bytes, executable } => return self.add_file(root, path, *bytes, *executable),
        }
        .map_err(PackError::Write)
    }

    fn add_file(&mut self, root: &Path, path: &Path, bytes: u64, executable: bool) -> Result<(), PackError> {
        let full = root.join(path);
        let file = File::open(&full).map_err(|source| PackError::io(&full, source))?;
        let mut header = header(EntryType::Regular, if executable { 0o755 } else { 0o644 }, bytes);
        // The header has said how much will come.
        let mut content = file.take(bytes);
        self.tar
            .append_data(&mut header, path, &mut content)
            .map_err(PackError::Write)?;
        let read = bytes - content.limit();
        let longer = content.into_inner().read(&mut [0]).unwrap_or(0) > 0;
        if read < bytes || longer {
            return Err(PackError::Changed(full));
        }
        Ok(())
    }
}

/// Of an entry only what is the same for the same content.
fn header(kind: EntryType, mode: u32, bytes: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(bytes);
    header.set_mtime(CHANGED);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// Takes no more bytes than allowed.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
    is_full: bool,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.limit - self.bytes.len() {
            self.is_full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn size_of(entry: &Entry) -> u64 {
    match entry {
        Entry::File { bytes, .. } => *bytes,
        Entry::Folder | Entry::Link { .. } => 0,
    }
}

fn largest(entries: &BTreeMap<PathBuf, Entry>) -> String {
    let mut files: Vec<_> = entries
        .iter()
        .map(|(path, entry)| (size_of(entry), path))
        .filter(|(bytes, _)| *bytes > 0)
        .collect();
    files.sort_by(|one, other| other.0.cmp(&one.0).then(one.1.cmp(other.1)));
    let name = |(bytes, path): &(u64, &PathBuf)| format!("{} ({})", path.display(), in_units(*bytes));
    let names: Vec<_> = files.iter().take(SHOWN).map(name).collect();
    names.join(", ")
}

fn in_units(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

#[cfg(test)]
#[path = "pack_tests.rs"]
mod tests;
