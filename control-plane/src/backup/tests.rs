use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use mosec_types::BundleId;
use mosec_types::PipelineSpec;
use openraft::storage::{RaftLogStorage as _, RaftStateMachine as _};
use tempfile::TempDir;

use super::file::{BackupError, Encoder, Header, Kind, check};
use super::restore::{MARKER, Restore, RestoreError, restore};
use crate::fixtures::{pipeline, stage, up};
use crate::raft::codec;
use crate::raft::log_store::{LogStore, Owner};
use crate::raft::sled_kv::SledKv;
use crate::raft::snapshot::SnapshotDir;
use crate::raft::state_machine::{Snapshots, StateMachine};
use crate::state::{Command, Model, apply};

/// What members take as their code.
fn bundle(number: u8) -> (BundleId, Bytes) {
    let bytes = Bytes::from(vec![number; 40]);
    (mosec_bundle::id_of(&bytes), bytes)
}

fn deployed(model: &mut Model, index: u64, name: &str, bundle: Option<BundleId>) {
    let mut spec: PipelineSpec = pipeline(name, vec![stage("A", 1)]);
    spec.source.bundle = bundle;
    let deploy = Command::Deploy {
        spec: spec.into(),
        healthy_deadline_ms: 1,
        origin: Default::default(),
    };
    apply(model, index, deploy.into());
}

fn model() -> Model {
    let mut model = crate::fixtures::model(1, [up("a")], vec![]);
    deployed(&mut model, 7, "p", Some(bundle(1).0));
    deployed(&mut model, 9, "q", Some(bundle(2).0));
    model
}

fn members() -> BTreeMap<u64, String> {
    (1..=3).map(|id| (id, format!("host-{id}:7400"))).collect()
}

fn header(model: &Model) -> Header {
    Header {
        layout: Header::LAYOUT,
        cluster_id: "c".into(),
        build: "0.1.0".into(),
        format: model.format.0,
        taken_at_unix_ms: 86_400_000,
        member: 2,
        members: members(),
        term: 5,
        index: 9,
        last_index: 11,
        bundles: model.bundles().into_iter().collect(),
    }
}

/// The bytes of a backup, and the parts with where each ends.
fn encoded(header: &Header, model: &Model) -> (Vec<u8>, Vec<(String, usize)>) {
    let (mut encoder, magic) = Encoder::begin();
    let mut bytes = magic.to_vec();
    let mut ends = Vec::new();
    let mut add = |name: String, parts: [Bytes; 3]| {
        parts.iter().for_each(|part| bytes.extend_from_slice(part));
        ends.push((name, bytes.len()));
    };
    let record = serde_json::to_vec(header).unwrap();
    add("the header".into(), encoder.section(Kind::Header, record.into()));
    let state = codec::encode_as(model.format, model).unwrap();
    add("the state".into(), encoder.section(Kind::State, state.into()));
    for id in &header.bundles {
        let all = [bundle(1), bundle(2)];
        let content = all.into_iter().find(|(known, _)| known == id);
        let (kind, content) = content.map_or_else(
            || (Kind::Missing, Bytes::from_static(b"no member has it")),
            |(_, content)| (Kind::Bundle, content),
        );
        let name = format!("bundle {}", id.short());
        add(name, encoder.section(kind, content));
    }
    add("its end".into(), encoder.end());
    (bytes, ends)
}

struct Place {
    dir: TempDir,
    backup: PathBuf,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let backup = dir.path().join("the.backup");
        let model = model();
        fs::write(&backup, encoded(&header(&model), &model).0).unwrap();
        Self { dir, backup }
    }

    fn plan(&self, member: u64) -> Restore {
        Restore {
            backup: self.backup.clone(),
            data_dir: self.dir.path().join(member.to_string()),
            cluster_id: "c".into(),
            member,
            peers: BTreeMap::new(),
            new_members: false,
            round: 1,
        }
    }
}

#[test]
fn a_backup_has_what_was_put_in() {
    let place = Place::new();
    let contents = check(&place.backup).unwrap();
    assert_eq!((contents.header, contents.model), (header(&model()), model()));
    assert_eq!(contents.bytes, fs::metadata(&place.backup).unwrap().len());
}

#[test]
fn each_flipped_byte_and_each_cut_is_found_and_named() {
    let place = Place::new();
    let model = model();
    let (good, ends) = encoded(&header(&model), &model);
    let bad = place.dir.path().join("bad.backup");
    let part = |at: usize| ends.iter().find(|(_, end)| at < *end).unwrap().0.clone();
    // Each byte around the sections' ends, where the lengths and sums are, and a sample of all others.
    let near = |at: usize| at < 64 || ends.iter().any(|(_, end)| end.abs_diff(at) < 48);
    for at in (0..good.len()).filter(|&at| at % 41 == 0 || near(at)) {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        fs::write(&bad, &bytes).unwrap();
        let error = check(&bad).unwrap_err();
        let text = error.to_string();
        match error {
            BackupError::NoBackup(_) => assert!(at < 8, "byte {at}"),
            BackupError::Damaged { .. } | BackupError::CutShort { .. } => {
                assert!(at >= 8 && text.contains(&part(at)), "byte {at}: {text}");
            }
            other => panic!("byte {at}: {other}"),
        }
        fs::write(&bad, &good[..at]).unwrap();
        let text = check(&bad).unwrap_err().to_string();
        let named = at < 8 && text.contains("is no backup")
            || at >= 8 && text.contains(&format!("is cut short in {}", part(at)));
        assert!(named, "cut at {at}: {text}");
    }
    fs::write(&bad, [good.as_slice(), b"more"].concat()).unwrap();
    let text = check(&bad).unwrap_err().to_string();
    assert!(
        text.ends_with("is damaged in its end: 4 bytes come after it"),
        "{text}"
    );
}

#[test]
fn a_backup_without_its_code_or_of_a_later_build_is_refused() {
    let place = Place::new();
    let (full, later) = (
        model(),
        Model {
            format: crate::state::Format(99),
            ..model()
        },
    );
    let mut lacking = header(&full);
    lacking.bundles.retain(|id| *id != bundle(2).0);
    fs::write(&place.backup, encoded(&lacking, &full).0).unwrap();
    let text = check(&place.backup).unwrap_err().to_string();
    let expected = format!(
        "the state names bundle {}, which is not there",
        bundle(2).0.short()
    );
    assert!(text.ends_with(&expected), "{text}");
    let next = Header {
        layout: 2,
        ..header(&full)
    };
    fs::write(&place.backup, encoded(&next, &full).0).unwrap();
    let text = check(&place.backup).unwrap_err().to_string();
    assert!(
        text.contains("is of layout 2, and this build reads layout 1"),
        "{text}"
    );
    fs::write(&place.backup, encoded(&header(&later), &later).0).unwrap();
    let error = anyhow::Error::from(check(&place.backup).unwrap_err());
    assert!(
        format!("{error:#}").contains("the cluster is at format 99"),
        "{error:#}"
    );
}

#[test]
fn code_that_is_missing_is_named_with_who_needs_it() {
    let place = Place::new();
    let mut model = model();
    deployed(&mut model, 11, "p", Some(bundle(3).0));
    let missing = |model: &Model| {
        fs::write(&place.backup, encoded(&header(model), model).0).unwrap();
        let missing = check(&place.backup).unwrap().missing;
        let told = |missing: &super::Missing| (missing.to_string(), missing.needed_by.len());
        missing.iter().map(told).collect::<Vec<_>>()
    };
    assert_eq!(
        missing(&model),
        [(
            "the code of p 11 is missing, which p 11 runs on: no member has it".into(),
            1
        )]
    );
    // Members are made from it all the same, without that code.
    let plan = place.plan(1);
    let contents = restore(&plan).unwrap();
    assert_eq!(contents.missing.len(), 1);
    assert_eq!(fs::read_dir(plan.data_dir.join("bundles")).unwrap().count(), 2);
    // Another one replaces it, and it can be gone back to.
    deployed(&mut model, 15, "p", Some(bundle(1).0));
    assert_eq!(
        missing(&model),
        [("the code of p 11 is missing: no member has it".into(), 0)]
    );
}

/// What a member finds when it starts in a folder.
async fn started(dir: &Path, member: u64) -> (crate::raft::Vote, crate::raft::LogId, Model) {
    let owner = Owner {
        cluster_id: "c".into(),
        member,
    };
    let kv = SledKv::open(&dir.join("log"), std::time::Duration::from_secs(10)).unwrap();
    let mut log = LogStore::open(std::sync::Arc::new(kv), &owner).unwrap();
    assert!(!log.is_newcomer(), "nobody is left to bring it level");
    let state = log.get_log_state().await.unwrap();
    let snapshots = SnapshotDir::open(&dir.join("snapshots")).unwrap();
    let (mut machine, model) = StateMachine::open(Snapshots::Dir(snapshots)).unwrap();
    let (applied, membership) = machine.applied_state().await.unwrap();
    assert_eq!(state.last_log_id, state.last_purged_log_id);
    assert_eq!(applied, state.last_log_id);
    assert_eq!(membership.voter_ids().collect::<Vec<_>>(), [1, 2, 3]);
    let vote = log.read_vote().await.unwrap().unwrap();
    let model = Model::clone(&model.borrow());
    (vote, applied.unwrap(), model)
}

#[tokio::test]
async fn all_members_go_on_from_the_same_place_after_everything_that_was_seen() {
    let place = Place::new();
    let mut found = Vec::new();
    for member in 1..=3 {
        let plan = place.plan(member);
        restore(&plan).unwrap();
        found.push(started(&plan.data_dir, member).await);
        assert!(!plan.data_dir.join(MARKER).exists());
        for (id, bytes) in [bundle(1), bundle(2)] {
            let stored = fs::read(plan.data_dir.join("bundles").join(id.to_string())).unwrap();
            assert_eq!(stored, bytes);
        }
    }
    assert!(found.iter().all(|other| *other == found[0]));
    let (vote, id, model) = &found[0];
    assert!(id.index > 100_000_000 && id.leader_id.term > 100_000_000);
    assert_eq!((vote.leader_id.term, vote.committed), (id.leader_id.term, false));
    // Watchers know versions of after the backup: this one is later, and a new revision is later still.
    assert_eq!(model.version, id.index);
    let expected = Model {
        version: id.index,
        audit: model.audit.clone(),
        ..self::model()
    };
    assert_eq!(*model, expected);
    let last = model.audit.entries().last().unwrap();
    assert_eq!(last.action, "restore the backup of this time");
    // A control plane that is lost as well has given numbers away, too.
    let again = Restore {
        round: 2,
        data_dir: place.dir.path().join("again"),
        ..place.plan(1)
    };
    restore(&again).unwrap();
    let (_, later, _) = started(&again.data_dir, 1).await;
    assert_eq!(later.index, id.index + 100_000_000);
}

#[tokio::test]
async fn an_interrupted_restore_is_begun_anew() {
    let place = Place::new();
    let plan = place.plan(1);
    for left in ["log", "snapshots", "bundles"] {
        fs::create_dir_all(plan.data_dir.join(left)).unwrap();
        fs::write(plan.data_dir.join(left).join("half"), b"x").unwrap();
    }
    let refused = restore(&plan).unwrap_err();
    assert!(matches!(refused, RestoreError::NotEmpty { .. }), "{refused}");
    fs::write(plan.data_dir.join(MARKER), b"").unwrap();
    restore(&plan).unwrap();
    started(&plan.data_dir, 1).await;
    assert!(!plan.data_dir.join("bundles/half").exists());
    // Ended well, it is not done over.
    let refused = restore(&plan).unwrap_err().to_string();
    assert!(refused.contains("is not empty: it has \"bundles\""), "{refused}");
}

#[test]
fn nothing_is_written_where_something_is_wrong() {
    let place = Place::new();
    let good = place.plan(2);
    let refused = |plan: &Restore| restore(plan).unwrap_err().to_string();
    let other = Restore {
        cluster_id: "d".into(),
        ..good.clone()
    };
    assert_eq!(refused(&other), "the backup is of cluster \"c\", not of \"d\"");
    let stranger = Restore {
        member: 4,
        ..good.clone()
    };
    let all = "1=host-1:7400,2=host-2:7400,3=host-3:7400";
    assert_eq!(
        refused(&stranger),
        format!("member 4 is not among the members {all}")
    );
    // As the settings of a founder name them after one of three was replaced.
    let founders = Restore {
        peers: [1, 2, 4].map(|id| (id, format!("host-{id}:7400"))).into(),
        ..good.clone()
    };
    assert_eq!(
        refused(&founders),
        format!(
            "the backup is of the members {all}, and the peers are 1=host-1:7400,2=host-2:7400,4=host-4:7400"
        )
    );
    let nowhere = Restore {
        backup: place.dir.path().join("none"),
        ..good.clone()
    };
    assert!(refused(&nowhere).ends_with("none could not be read"));
    assert!(!good.data_dir.exists());
    fs::create_dir_all(good.data_dir.join("lost+found")).unwrap();
    restore(&good).unwrap();
    let same = Restore {
        peers: members(),
        data_dir: place.dir.path().join("same"),
        ..good.clone()
    };
    restore(&same).unwrap();
    let alone = Restore {
        peers: BTreeMap::from([(2, "elsewhere:7400".into())]),
        new_members: true,
        data_dir: place.dir.path().join("alone"),
        ..good
    };
    assert_eq!(alone.check().unwrap().members, alone.peers);
    restore(&alone).unwrap();
}

#[test]
fn a_backup_that_does_not_say_who_the_members_were_needs_peers() {
    let place = Place::new();
    let (model, mut plan) = (model(), place.plan(1));
    let silent = Header {
        members: BTreeMap::new(),
        ..header(&model)
    };
    fs::write(&place.backup, encoded(&silent, &model).0).unwrap();
    assert!(matches!(restore(&plan), Err(RestoreError::NoMembers)));
    plan.peers = members();
    restore(&plan).unwrap();
}
