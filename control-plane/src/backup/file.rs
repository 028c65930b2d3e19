//! The file of a backup.
//!
//! Magic (8 bytes), then sections: kind (1 byte), length of the content (8, little endian), content, SHA-256 of these
//! three. First the header as JSON, then the state as a record of [`crate::raft::codec`], then for each bundle that the
//! header lists, in its order, its bytes, or why no member had it, and last the SHA-256 of everything before that section. Nothing comes after it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader, Read as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use mosec_types::BundleId;
use ring::digest::{Context, SHA256, SHA256_OUTPUT_LEN};
use serde::{Deserialize, Serialize};

use super::missing::Missing;
use crate::raft::codec::{self, CodecError};
use crate::state::{Formats, Model};

const MAGIC: [u8; 8] = *b"msecbkp1";
const HEAD_BYTES: usize = 9;
/// What this build writes and reads.
const LAYOUT: u32 = 1;
/// Longest header: some ten thousand bundles' ids.
const MAX_HEADER_BYTES: u64 = 1 << 20;
/// Longest state: a hundred times what the largest cluster that was measured has.
const MAX_STATE_BYTES: u64 = 1 << 30;

/// Longest text that says why a bundle is missing: a line for each member.
pub(crate) const MAX_WHY_BYTES: usize = 4096;

/// What a section holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Header = b'H',
    State = b'S',
    Bundle = b'B',
    /// In the place of a bundle: why it is not there.
    Missing = b'M',
    End = b'E',
}

impl Kind {
    fn max_bytes(self) -> u64 {
        match self {
            Self::Header => MAX_HEADER_BYTES,
            Self::State => MAX_STATE_BYTES,
            Self::Bundle => mosec_bundle::MAX_BYTES,
            Self::Missing => MAX_WHY_BYTES as u64,
            Self::End => SHA256_OUTPUT_LEN as u64,
        }
    }
}

/// What a backup is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Of the file.
    pub layout: u32,
    pub cluster_id: String,
    /// Version of the build of the member that made it.
    pub build: String,
    /// The format of commands and state in force.
    pub format: u8,
    /// Milliseconds since 1970 on that member's clock.
    pub taken_at_unix_ms: u64,
    /// The leader that made it.
    pub member: u64,
    /// `host:port` of each member that voted then. Empty in files from before they were kept.
    #[serde(default)]
    pub members: BTreeMap<u64, String>,
    /// Its term.
    pub term: u64,
    /// The state has at least all entries up to this one.
    pub index: u64,
    /// The last entry in that leader's log when it made this. It went on logging in the same term: that a restored log is
    /// later than all of that rests on the gap that a restore leaves after this index alone.
    pub last_index: u64,
    /// The bundles that the state names, in the order in which they, or why they are missing, are in the file.
    pub bundles: Vec<BundleId>,
}

/// Makes the bytes of a backup, section by section.
pub(crate) struct Encoder {
    whole: Context,
}

impl Encoder {
    /// With what the file begins.
    pub(crate) fn begin() -> (Self, Bytes) {
        let mut whole = Context::new(&SHA256);
        whole.update(&MAGIC);
        (Self { whole }, Bytes::from_static(&MAGIC))
    }

    /// The parts of a section, in their order.
    pub(crate) fn section(&mut self, kind: Kind, content: Bytes) -> [Bytes; 3] {
        let [head, content, sum] = parts(kind, content);
        for part in [&head, &content, &sum] {
            self.whole.update(part);
        }
        [head, content, sum]
    }

    /// With what the file ends.
    pub(crate) fn end(self) -> [Bytes; 3] {
        let sum = self.whole.finish();
        parts(Kind::End, Bytes::copy_from_slice(sum.as_ref()))
    }
}

fn parts(kind: Kind, content: Bytes) -> [Bytes; 3] {
    let mut head = [0; HEAD_BYTES];
    head[0] = kind as u8;
    head[1..].copy_from_slice(&(content.len() as u64).to_le_bytes());
    let sum = sum_of(&head, &content);
    [Bytes::copy_from_slice(&head), content, sum]
}

fn sum_of(head: &[u8], content: &[u8]) -> Bytes {
    let mut sum = Context::new(&SHA256);
    sum.update(head);
    sum.update(content);
    Bytes::copy_from_slice(sum.finish().as_ref())
}

/// Why a file is no backup that can be used.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("{} could not be read", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} is no backup: it does not begin as one", .0.display())]
    NoBackup(PathBuf),
    #[error("{} is cut short in {part}: the backup was not finished, or the file was not copied whole", path.display())]
    CutShort { path: PathBuf, part: String },
    #[error("{} is damaged in {part}: {problem}", path.display())]
    Damaged {
        path: PathBuf,
        part: String,
        problem: String,
    },
    #[error("{} is of layout {found}, and this build reads layout {LAYOUT}: use the build that made it, or a later one", path.display())]
    Layout { path: PathBuf, found: u32 },
    #[error("the state in {} cannot be used", path.display())]
    State {
        path: PathBuf,
        #[source]
        problem: CodecError,
    },
}

/// What is in a backup.
#[derive(Debug)]
pub struct Contents {
    pub header: Header,
    pub model: Model,
    /// The bundles that no member could give.
    pub missing: Vec<Missing>,
    /// Of the whole file.
    pub bytes: u64,
}

/// Checks all of a backup. Blocks; holds one bundle at a time.
pub fn check(path: &Path) -> Result<Contents, BackupError> {
    read(path, |_, _| Ok(()))
}

/// As [`check`], and hands out each bundle when it is checked.
pub(super) fn read<E: From<BackupError>>(
    path: &Path,
    mut bundle: impl FnMut(BundleId, Bytes) -> Result<(), E>,
) -> Result<Contents, E> {
    let mut reader = Reader::open(path)?;
    let header = reader.header()?;
    let state = reader.section(Kind::State, "the state")?;
    let model = model(&state).map_err(|problem| BackupError::State {
        path: path.to_owned(),
        problem,
    })?;
    drop(state);
    let held: BTreeSet<_> = header.bundles.iter().copied().collect();
    if let Some(lacking) = model.bundles().difference(&held).next() {
        let problem = format!("the state names bundle {}, which is not there", lacking.short());
        return Err(reader.damaged("the header", problem).into());
    }
    let mut missing = Vec::new();
    for (at, &id) in (1..).zip(&header.bundles) {
        let part = format!("bundle {} ({at} of {})", id.short(), header.bundles.len());
        let (kind, content) = reader.section_of(&[Kind::Bundle, Kind::Missing], &part)?;
        if kind == Kind::Missing {
            let why = String::from_utf8_lossy(&content).into_owned();
            missing.push(Missing::new(id, why, &model));
            continue;
        }
        let content = Bytes::from(content);
        let found = mosec_bundle::id_of(&content);
        if found != id {
            return Err(reader
                .damaged(&part, format!("it is bundle {}", found.short()))
                .into());
        }
        bundle(id, content)?;
    }
    let bytes = reader.end()?;
    Ok(Contents {
        header,
        model,
        missing,
        bytes,
    })
}

fn model(record: &[u8]) -> Result<Model, CodecError> {
    let model: Model = codec::decode_as(Formats::BUILD, record)?;
    Formats::BUILD.check(model.format)?;
    Ok(model)
}

struct Reader {
    path: PathBuf,
    file: BufReader<File>,
    /// Bytes that are not read yet.
    left: u64,
    bytes: u64,
    whole: Context,
}

impl Reader {
    fn open(path: &Path) -> Result<Self, BackupError> {
        let failed = |source| BackupError::Io {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        let mut reader = Self {
            path: path.to_owned(),
            file: BufReader::new(file),
            left: bytes,
            bytes,
            whole: Context::new(&SHA256),
        };
        let magic = reader.take(MAGIC.len() as u64, "its beginning");
        match magic {
            Ok(magic) if magic == MAGIC => {
                reader.whole.update(&magic);
                Ok(reader)
            }
            Err(error @ BackupError::Io { .. }) => Err(error),
            _ => Err(BackupError::NoBackup(reader.path)),
        }
    }

    fn header(&mut self) -> Result<Header, BackupError> {
        #[derive(Deserialize)]
        struct Layout {
            layout: u32,
        }
        let part = "the header";
        let content = self.section(Kind::Header, part)?;
        let Layout { layout } =
            serde_json::from_slice(&content).map_err(|error| self.damaged(part, error))?;
        if layout != LAYOUT {
            return Err(BackupError::Layout {
                path: self.path.clone(),
                found: layout,
            });
        }
        serde_json::from_slice(&content).map_err(|error| self.damaged(part, error))
    }

    /// The content of the next section, which must be of `kind`.
    fn section(&mut self, kind: Kind, part: &str) -> Result<Vec<u8>, BackupError> {
        Ok(self.section_of(&[kind], part)?.1)
    }

    /// The next section, which must be of one of `kinds`.
    fn section_of(&mut self, kinds: &[Kind], part: &str) -> Result<(Kind, Vec<u8>), BackupError> {
        let head = self.take(HEAD_BYTES as u64, part)?;
        let (found, length) = head.split_first_chunk().map_or((0, 0), |([found], length)| {
            (*found, length.try_into().map_or(0, u64::from_le_bytes))
        });
        let kind = kinds.iter().copied().find(|&kind| kind as u8 == found);
        let Some(kind) = kind.filter(|kind| length <= kind.max_bytes()) else {
            return Err(self.damaged(part, "another one stands in its place"));
        };
        let content = self.take(length, part)?;
        let sum = self.take(SHA256_OUTPUT_LEN as u64, part)?;
        if sum != sum_of(&head, &content) {
            return Err(self.damaged(part, "its checksum does not match"));
        }
        if kind != Kind::End {
            for bytes in [&head, &content, &sum] {
                self.whole.update(bytes);
            }
        }
        Ok((kind, content))
    }

    /// Checks the end; gives the length of the file.
    fn end(mut self) -> Result<u64, BackupError> {
        let part = "its end";
        let sum = self.section(Kind::End, part)?;
        if sum != self.whole.clone().finish().as_ref() {
            return Err(self.damaged(part, "the checksum of the whole does not match"));
        }
        match self.left {
            0 => Ok(self.bytes),
            more => Err(self.damaged(part, format!("{more} bytes come after it"))),
        }
    }

    fn take(&mut self, length: u64, part: &str) -> Result<Vec<u8>, BackupError> {
        if length > self.left {
            return Err(BackupError::CutShort {
                path: self.path.clone(),
                part: part.to_owned(),
            });
        }
        let mut bytes = Vec::new();
        let read = self.file.by_ref().take(length).read_to_end(&mut bytes);
        let read = read.map_err(|source| BackupError::Io {
            path: self.path.clone(),
            source,
        })?;
        self.left -= length;
        if read as u64 != length {
            return Err(BackupError::CutShort {
                path: self.path.clone(),
                part: part.to_owned(),
            });
        }
        Ok(bytes)
    }

    fn damaged(&self, part: &str, problem: impl ToString) -> BackupError {
        BackupError::Damaged {
            path: self.path.clone(),
            part: part.to_owned(),
            problem: problem.to_string(),
        }
    }
}

impl Header {
    pub(crate) const LAYOUT: u32 = LAYOUT;
}
