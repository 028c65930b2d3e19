//! The last topology on disk, so that a gateway or an agent that starts while the control plane is down serves.
//!
//! The file is magic (8 bytes), CRC-32 of the rest (4, little endian), the topology as protobuf. It is replaced as a
//! whole, by a rename. One that is missing or damaged means to wait for the control plane, as at the very first start.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mosec_types::Topology;
use prost::Message as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::proto;

const NAME: &str = "topology";
const MAGIC: [u8; 8] = *b"msectop1";
const HEADER_BYTES: usize = MAGIC.len() + 4;

/// Changes that come closer together are saved once.
const SETTLE: Duration = Duration::from_millis(500);

/// Where the last topology is kept.
#[derive(Debug, Clone)]
pub struct SavedTopology {
    dir: PathBuf,
}

/// Why a saved topology is of no use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SavedError {
    #[error("state folder {} cannot be used", dir.display())]
    Dir { dir: PathBuf, source: io::Error },
    #[error("it could not be read")]
    Io(#[from] io::Error),
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    #[error("it is not understood: {0}")]
    Content(String),
}

impl SavedTopology {
    /// Keeps the topology in `dir`, which is made if it is not there.
    pub fn in_dir(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// As [`SavedTopology::in_dir`], where a folder is wanted.
    pub fn in_optional_dir(dir: Option<&Path>) -> Result<Option<Self>, SavedError> {
        let open = |dir: &Path| {
            Self::in_dir(dir).map_err(|source| SavedError::Dir {
                dir: dir.to_owned(),
                source,
            })
        };
        dir.map(open).transpose()
    }

    /// The topology of an earlier run. An empty one, and a line in the log, where there is none that can be used.
    pub fn load(&self) -> Topology {
        match self.read() {
            Ok(Some(topology)) => {
                tracing::info!(version = topology.version, "starts with the saved topology");
                topology
            }
            Ok(None) => Topology::default(),
            Err(error) => {
                let path = self.path();
                tracing::warn!(path = %path.display(), %error, "the saved topology is not used");
                Topology::default()
            }
        }
    }

    /// Saves each topology that comes after this call, until `stop` or the last of them. What came before `stop` is
    /// saved.
    pub fn keep(
        self,
        mut topology: watch::Receiver<Arc<Topology>>,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + Send {
        let first = topology.borrow_and_update().clone();
        self.keep_after(first, topology, stop)
    }

    async fn keep_after(
        self,
        mut last: Arc<Topology>,
        mut topology: watch::Receiver<Arc<Topology>>,
        stop: CancellationToken,
    ) {
        let mut failing = false;
        loop {
            let ended = tokio::select! {
                changed = topology.changed() => changed.is_err(),
                () = stop.cancelled() => true,
            };
            if !ended {
                let _ = tokio::time::timeout(SETTLE, stop.cancelled()).await;
            }
            let newest = topology.borrow_and_update().clone();
            if !Arc::ptr_eq(&newest, &last) {
                last = newest.clone();
                failing = self.save(newest, failing).await;
            }
            if ended {
                return;
            }
        }
    }

    /// Gives whether it failed. Said once: a full disk stays full, and the topology in memory is as good.
    async fn save(&self, topology: Arc<Topology>, failing: bool) -> bool {
        let this = self.clone();
        let saved = tokio::task::spawn_blocking(move || this.write(&topology)).await;
        let error = match saved {
            Ok(Ok(())) => return false,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        if !failing {
            tracing::warn!(dir = %self.dir.display(), error, "the topology could not be saved");
        }
        true
    }

    fn path(&self) -> PathBuf {
        self.dir.join(NAME)
    }

    fn read(&self) -> Result<Option<Topology>, SavedError> {
        let bytes = match fs::read(self.path()) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        decode(&bytes).map(Some)
    }

    fn write(&self, topology: &Topology) -> io::Result<()> {
        let temporary = self.dir.join(format!("{NAME}.tmp"));
        let mut file = File::create(&temporary)?;
        file.write_all(&encode(topology))?;
        file.sync_all()?;
        fs::rename(&temporary, self.path())?;
        File::open(&self.dir)?.sync_all()
    }
}

fn encode(topology: &Topology) -> Vec<u8> {
    let body = proto::Topology::from(topology).encode_to_vec();
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

fn decode(bytes: &[u8]) -> Result<Topology, SavedError> {
    let rest = bytes
        .strip_prefix(&MAGIC)
        .ok_or(SavedError::Damaged("it does not begin as a topology does"))?;
    let (crc, body) = rest
        .split_first_chunk()
        .ok_or(SavedError::Damaged("it is cut off"))?;
    if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
        return Err(SavedError::Damaged("its checksum is wrong"));
    }
    let topology = proto::Topology::decode(body).map_err(|error| SavedError::Content(error.to_string()))?;
    Topology::try_from(topology).map_err(|error| SavedError::Content(error.to_string()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn topology(version: u64) -> Topology {
        Topology {
            version,
            ..Default::default()
        }
    }

    #[tokio::test]
    async fn what_was_kept_is_there_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let saved = SavedTopology::in_dir(&dir.path().join("state")).unwrap();
        assert_eq!(saved.load(), Topology::default());
        let (sender, receiver) = watch::channel(Arc::new(topology(3)));
        let stop = CancellationToken::new();
        let keeping = tokio::spawn(saved.clone().keep(receiver, stop.clone()));
        sender.send_replace(Arc::new(topology(4)));
        stop.cancel();
        keeping.await.unwrap();
        assert_eq!(saved.load(), topology(4));
        drop(sender);
    }

    #[test]
    fn a_damaged_file_is_as_good_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let saved = SavedTopology::in_dir(dir.path()).unwrap();
        saved.write(&topology(7)).unwrap();
        let good = fs::read(saved.path()).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            fs::write(saved.path(), &bad).unwrap();
            assert_eq!(saved.load(), Topology::default(), "byte {at}");
        }
        fs::write(saved.path(), &good[..good.len() - 1]).unwrap();
        assert_eq!(saved.load(), Topology::default());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = decode(&[MAGIC.as_slice(), &crc32fast::hash(&bytes).to_le_bytes(), &bytes].concat());
            prop_assert!(bytes.starts_with(&MAGIC) || decode(&bytes).is_err());
        }
    }
}
