//! What was acknowledged outlives the processes, a torn log and a full disk.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use mosec_types::{PipelineName, PipelineSpec};
use mosec_wire::control::ControlClient;
use parking_lot::Mutex;
use rand::Rng;
use tokio_util::sync::CancellationToken;

use crate::fixtures::pipeline;
use crate::processes::{Members, eventually};

/// Revisions that were acknowledged, by pipeline.
type Written = Arc<Mutex<BTreeMap<String, u64>>>;

fn named(name: &str) -> PipelineSpec {
    let mut spec = pipeline();
    spec.name = PipelineName::new(name).unwrap();
    spec.routes[0].path = format!("/{name}");
    spec
}

/// Deploys one pipeline after the other until `stop`, and notes what was acknowledged.
fn write(
    client: ControlClient,
    prefix: &str,
    written: &Written,
    stop: &CancellationToken,
) -> tokio::task::JoinHandle<()> {
    let (prefix, written, stop) = (prefix.to_owned(), written.clone(), stop.clone());
    tokio::spawn(async move {
        for number in 0.. {
            let name = format!("{prefix}-{number}");
            let (spec, hour) = (named(&name), Duration::from_secs(3600));
            tokio::select! {
                () = stop.cancelled() => return,
                revision = client.deploy(&spec, Some(hour)) => {
                    if let Ok(revision) = revision {
                        written.lock().insert(name, revision.0);
                    }
                }
            }
        }
    })
}

/// Writes until so many more are acknowledged.
async fn write_more(members: &Members, prefix: &str, written: &Written, more: usize) {
    let (stop, before) = (CancellationToken::new(), written.lock().len());
    let writer = write(members.client(), prefix, written, &stop);
    let enough = || std::future::ready((written.lock().len() >= before + more).then_some(()));
    eventually("acknowledged writes", enough).await;
    stop.cancel();
    writer.await.unwrap();
}

/// Everything acknowledged is there. Writes without an answer may be there, too.
async fn all_there(members: &Members, written: &Written) {
    let status = members.client().status().await.unwrap();
    let kept: BTreeMap<_, _> = status
        .deployments
        .into_iter()
        .filter_map(|status| status.deployment)
        .filter_map(|deployment| Some((deployment.spec?.name, deployment.revision)))
        .collect();
    for (name, revision) in written.lock().iter() {
        assert_eq!(kept.get(name), Some(revision), "{name} was acknowledged");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_writes_survive_the_sudden_end_of_all_members() {
    let mut members = Members::start(3).await;
    let written = Written::default();
    for round in 0..4 {
        let stop = CancellationToken::new();
        let writers: Vec<_> = (0..3)
            .map(|writer| write(members.client(), &format!("w{round}-{writer}"), &written, &stop))
            .collect();
        let before = written.lock().len();
        let more = rand::rng().random_range(5..60);
        let enough = || std::future::ready((written.lock().len() >= before + more).then_some(()));
        eventually("acknowledged writes", enough).await;
        for member in members.all() {
            members.kill(member);
        }
        stop.cancel();
        for writer in writers {
            writer.await.unwrap();
        }
        (1..=3).for_each(|member| members.run(member));
        all_there(&members, &written).await;
    }
}

/// The last part of a log that a crash has left: what was being written and never synced.
enum Tail {
    /// Bytes of a record that was never finished follow the last one.
    Torn,
    /// The file is shorter by so many bytes: its length was not synced.
    Short(u64),
    /// The last bytes are others.
    Garbled(u64),
}

fn damage(log: &Path, tail: &Tail) {
    let mut file = OpenOptions::new().read(true).write(true).open(log).unwrap();
    let length = file.metadata().unwrap().len();
    let noise: Vec<u8> = (0..512u32).map(|n| (n * 37 + 11) as u8).collect();
    match *tail {
        Tail::Torn => {
            file.seek(SeekFrom::End(0)).unwrap();
            file.write_all(&noise).unwrap();
        }
        Tail::Short(bytes) => file.set_len(length.saturating_sub(bytes)).unwrap(),
        Tail::Garbled(bytes) => {
            let bytes = bytes.min(length).min(noise.len() as u64);
            file.seek(SeekFrom::End(-i64::try_from(bytes).unwrap())).unwrap();
            file.write_all(&noise[..usize::try_from(bytes).unwrap()]).unwrap();
        }
    }
    file.sync_all().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_log_of_one_member_loses_nothing() {
    let mut members = Members::start(3).await;
    let written = Written::default();
    let client = members.client();
    for (round, tail) in [
        Tail::Torn,
        Tail::Short(100),
        Tail::Garbled(300),
        Tail::Short(5000),
    ]
    .iter()
    .enumerate()
    {
        write_more(&members, &format!("r{round}"), &written, 30).await;
        let leader = members.level(&client).await;
        // The leader itself, and followers.
        let torn = if round % 2 == 0 { leader } else { leader % 3 + 1 };
        for member in members.all() {
            members.kill(member);
        }
        let log = members.data_dir(torn).join("log/db");
        damage(&log, tail);
        (1..=3).for_each(|member| members.run(member));
        all_there(&members, &written).await;
        let running = members.running();
        assert_eq!(running.len(), 3, "{}", members.log(torn));
        members.level(&client).await;
    }
    // And the members that were damaged can be relied on again.
    write_more(&members, "last", &written, 5).await;
    let leader = members.level(&client).await;
    members.kill(leader);
    all_there(&members, &written).await;
}

/// A small file system of its own; `None` where this process may not mount one.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(at: &Path, megabytes: u32) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"])
            .arg(at)
            .status();
        mounted
            .is_ok_and(|status| status.success())
            .then(|| Self(at.to_owned()))
    }

    /// Takes what is left but for some bytes.
    fn fill(&self, leave: u64) {
        let path = self.0.join("filler");
        let mut file = File::create(&path).unwrap();
        let piece = [0; 4096];
        while file.write_all(&piece).is_ok() {}
        let length = file.metadata().unwrap().len();
        file.set_len(length.saturating_sub(leave)).unwrap();
    }

    fn clear(&self) {
        std::fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_ends_a_member_with_its_reason_and_loses_nothing() {
    let mut members = Members::prepare(3).await;
    let Some(disk) = SmallDisk::mount(members.data_dir(2), 16) else {
        println!("not run: mounting a small file system takes root");
        return;
    };
    (1..=3).for_each(|member| members.run(member));
    let written = Written::default();
    write_more(&members, "before", &written, 20).await;
    disk.fill(16 * 1024);
    let stop = CancellationToken::new();
    let writer = write(members.client(), "full", &written, &stop);
    let status = members.ended(2).await;
    let log = members.log(2);
    assert!(!status.success(), "{log}");
    println!("{log}");
    assert!(log.contains("No space left on device"), "{log}");
    // The two others go on.
    write_more(&members, "two", &written, 20).await;
    stop.cancel();
    writer.await.unwrap();
    all_there(&members, &written).await;
    disk.clear();
    members.run(2);
    let client = members.client();
    let leader = members.level(&client).await;
    all_there(&members, &written).await;
    // Member 2 is of use again: without one of the others it makes the majority.
    members.kill(if leader == 2 { 1 } else { leader });
    write_more(&members, "after", &written, 5).await;
    all_there(&members, &written).await;
    drop(members);
    drop(disk);
}
