//! Makes a member's data folder from a backup, offline.
//!
//! A marker is written first and removed last: a folder with one is of an interrupted restore, which no member starts
//! from and the next restore clears. Each member of the new control plane gets the same log id, snapshot and vote, all
//! derived from the file alone, so they agree before they have spoken.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use openraft::{BasicNode, CommittedLeaderId, Membership};

use super::file::{self, BackupError, Contents, Header};
use crate::bundles::files::BundleFiles;
use crate::bundles::store::{BundleStore as _, StoreError};
use crate::raft::codec::{self, CodecError};
use crate::raft::kv::{Change, KvError, LogKv as _, MetaKey};
use crate::raft::log_store::Owner;
use crate::raft::sled_kv::SledKv;
use crate::raft::snapshot::{SnapshotDir, SnapshotError, Stored};
use crate::raft::{LogId, MemberId, SnapshotMeta, StoredMembership, Vote};
use crate::state::Model;

/// The file in a data folder that says that a restore has begun and not ended.
pub const MARKER: &str = "restore-unfinished";
/// By so much terms and log entries go on after the backup's: more than were ever written after it, at one each second for
/// three years. What gateways and agents have seen from then is older than what the restored members say, and no revision
/// number is given away twice.
const BUMP: u64 = 100_000_000;
/// Nobody else opens the log of a folder that is being made.
const LOG_PATIENCE: Duration = Duration::from_secs(1);
/// What file systems put into an empty mount point.
const IGNORED: &str = "lost+found";
/// What a member keeps in its data folder.
const PARTS: [&str; 3] = ["log", "snapshots", "bundles"];

/// Whose data folder is to be made.
#[derive(Debug, Clone)]
pub struct Restore {
    pub backup: PathBuf,
    pub data_dir: PathBuf,
    pub cluster_id: String,
    pub member: MemberId,
    /// `host:port` of every member of the new control plane, this one included. Those of the backup where empty.
    pub peers: BTreeMap<MemberId, String>,
    /// Whether `peers` may be others than the backup's members.
    pub new_members: bool,
    /// 1 for the first control plane that is made from this backup, and one more for each after it.
    pub round: u32,
}

/// What [`Restore::check`] has found.
#[derive(Debug)]
pub struct Checked {
    pub contents: Contents,
    /// The log id from which the members go on.
    pub id: LogId,
    /// `host:port` of every member of the new control plane.
    pub members: BTreeMap<MemberId, String>,
}

/// Why a folder was not made.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error(transparent)]
    Backup(#[from] BackupError),
    #[error("the backup is of cluster {found:?}, not of {wanted:?}")]
    Cluster { found: String, wanted: String },
    #[error("member {member} is not among the members {}", listed(members))]
    NotAMember {
        member: MemberId,
        members: BTreeMap<MemberId, String>,
    },
    #[error(
        "the backup is of the members {}, and the peers are {}",
        listed(members),
        listed(peers)
    )]
    OtherMembers {
        members: BTreeMap<MemberId, String>,
        peers: BTreeMap<MemberId, String>,
    },
    #[error("the backup does not say who the members were, and no peers are given")]
    NoMembers,
    #[error("{} is not empty: it has {found:?}; a member is restored into an empty folder", dir.display())]
    NotEmpty { dir: PathBuf, found: String },
    #[error("{} could not be used", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("the bundles could not be stored")]
    Bundles(#[from] StoreError),
    #[error("the snapshot could not be stored")]
    Snapshot(#[from] SnapshotError),
    #[error("the log could not be made")]
    Log(#[from] KvError),
    #[error("what is restored could not be encoded")]
    Encode(#[from] CodecError),
}

/// The log id from which members restored from this backup go on.
fn restored_id(header: &Header, model: &Model, round: u32) -> LogId {
    let bump = BUMP.saturating_mul(round.into());
    let term = header.term.saturating_add(bump);
    let last = header.last_index.max(header.index).max(model.version);
    // No member has the number 0, so nobody has ever led this term.
    LogId::new(CommittedLeaderId::new(term, 0), last.saturating_add(bump))
}

/// Members as `--peers` has them.
fn listed(members: &BTreeMap<MemberId, String>) -> String {
    let members = members
        .iter()
        .map(|(member, address)| format!("{member}={address}"));
    members.collect::<Vec<_>>().join(",")
}

impl Restore {
    /// Checks everything that can be checked here: the whole file, whose it is, the members, and the folder. Blocks. Writes
    /// nothing.
    pub fn check(&self) -> Result<Checked, RestoreError> {
        check_folder(&self.data_dir)?;
        let contents = file::check(&self.backup)?;
        if contents.header.cluster_id != self.cluster_id {
            return Err(RestoreError::Cluster {
                found: contents.header.cluster_id,
                wanted: self.cluster_id.clone(),
            });
        }
        let members = self.members(&contents.header)?;
        let id = restored_id(&contents.header, &contents.model, self.round);
        Ok(Checked {
            contents,
            id,
            members,
        })
    }

    /// The members of the new control plane. Settings of a member name those that it was started with once, and settings
    /// with which each member would found its own cluster make two: the backup knows better than either.
    fn members(&self, header: &Header) -> Result<BTreeMap<MemberId, String>, RestoreError> {
        let known = &header.members;
        let members = match (self.peers.is_empty(), known.is_empty()) {
            (true, true) => return Err(RestoreError::NoMembers),
            (true, false) => known,
            (false, false) if self.peers != *known && !self.new_members => {
                return Err(RestoreError::OtherMembers {
                    members: known.clone(),
                    peers: self.peers.clone(),
                });
            }
            (false, _) => &self.peers,
        };
        if !members.contains_key(&self.member) {
            return Err(RestoreError::NotAMember {
                member: self.member,
                members: members.clone(),
            });
        }
        Ok(members.clone())
    }
}

fn membership(members: &BTreeMap<MemberId, String>) -> Membership<MemberId, BasicNode> {
    let nodes: BTreeMap<_, _> = members
        .iter()
        .map(|(&member, address)| (member, BasicNode::new(address)))
        .collect();
    let voters: BTreeSet<_> = nodes.keys().copied().collect();
    Membership::new(vec![voters], nodes)
}

/// Makes the folder. Blocks. Interrupted, it leaves one that is refused by a member and taken by the next restore.
pub fn restore(plan: &Restore) -> Result<Contents, RestoreError> {
    let Checked {
        mut contents,
        id,
        members,
    } = plan.check()?;
    let dir = &plan.data_dir;
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| RestoreError::Io { path, source }
    };
    fs::create_dir_all(dir).map_err(failed(dir))?;
    let marker = dir.join(MARKER);
    File::create(&marker)
        .and_then(|file| file.sync_all())
        .map_err(failed(&marker))?;
    sync(dir).map_err(failed(dir))?;
    for part in PARTS {
        let path = dir.join(part);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&path)(error)),
            _ => {}
        }
    }
    let bundles = BundleFiles::open(&dir.join("bundles"))?;
    file::read(&plan.backup, |id, bytes| {
        bundles.put(&id, &bytes).map_err(RestoreError::from)
    })?;
    let at = contents.header.taken_at_unix_ms;
    contents.model.restored(id.index, at);
    let snapshots = SnapshotDir::open(&dir.join("snapshots"))?;
    snapshots.save(&Stored {
        meta: SnapshotMeta {
            last_log_id: Some(id),
            last_membership: StoredMembership::new(Some(id), membership(&members)),
            snapshot_id: format!("restored-{}", id.index),
        },
        state: codec::encode_as(contents.model.format, &contents.model)?,
    })?;
    write_log(plan, id)?;
    for part in PARTS {
        let path = dir.join(part);
        sync(&path).map_err(failed(&path))?;
    }
    sync(dir).map_err(failed(dir))?;
    fs::remove_file(&marker).map_err(failed(&marker))?;
    sync(dir).map_err(failed(dir))?;
    Ok(contents)
}

/// An empty log that goes on after `id`, whose member has voted for nobody since.
fn write_log(plan: &Restore, id: LogId) -> Result<(), RestoreError> {
    let owner = Owner {
        cluster_id: plan.cluster_id.clone(),
        member: plan.member,
    };
    let vote = Vote::new(id.leader_id.term, id.leader_id.node_id);
    let kv = SledKv::open(&plan.data_dir.join("log"), LOG_PATIENCE)?;
    kv.write(vec![
        Change::PutMeta(MetaKey::Newcomer, codec::encode(&false)?),
        Change::PutMeta(MetaKey::Vote, codec::encode(&vote)?),
        Change::PutMeta(MetaKey::Purged, codec::encode(&id)?),
        Change::PutMeta(MetaKey::Owner, codec::encode(&owner)?),
    ])?;
    kv.sync()?;
    Ok(())
}

/// Refuses a folder that has anything in it, but for what an interrupted restore has left.
fn check_folder(dir: &Path) -> Result<(), RestoreError> {
    let failed = |source| RestoreError::Io {
        path: dir.to_owned(),
        source,
    };
    let items = match fs::read_dir(dir) {
        Ok(items) => items,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(failed(source)),
    };
    let mut names = BTreeSet::new();
    for item in items {
        names.insert(item.map_err(failed)?.file_name().to_string_lossy().into_owned());
    }
    let unfinished = names.contains(MARKER);
    let ours = |name: &str| unfinished && (name == MARKER || PARTS.contains(&name));
    let foreign = names.into_iter().find(|name| name != IGNORED && !ours(name));
    match foreign {
        Some(found) => Err(RestoreError::NotEmpty {
            dir: dir.to_owned(),
            found,
        }),
        None => Ok(()),
    }
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
