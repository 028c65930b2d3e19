//! Real processes with the default timers, killed without warning.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mosec_types::Revision;
use mosec_wire::control::{ClientConfig, ControlClient};
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::harness::{PATIENCE, pipeline};

/// The promise for writes after the loss of a leader.
const FAIL_OVER: Duration = Duration::from_secs(3);

struct Members {
    addresses: BTreeMap<u64, String>,
    running: BTreeMap<u64, Child>,
    dir: TempDir,
}

impl Members {
    fn start(count: u64) -> Self {
        // Held together, so that they differ; free again when the members bind them.
        let held: Vec<_> = (0..count)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let addresses = (1..)
            .zip(&held)
            .map(|(id, port)| (id, port.local_addr().unwrap().to_string()))
            .collect();
        drop(held);
        let mut members = Self {
            addresses,
            running: BTreeMap::new(),
            dir: tempfile::tempdir().unwrap(),
        };
        (1..=count).for_each(|member| members.run(member));
        members
    }

    fn run(&mut self, member: u64) {
        let peers: Vec<_> = self
            .addresses
            .iter()
            .map(|(id, address)| format!("{id}={address}"))
            .collect();
        let child = Command::new(env!("CARGO_BIN_EXE_mosec-control-plane"))
            .args([
                "--cluster-id",
                "test",
                "--insecure",
                "--log-level",
                "off",
                "--peers",
                &peers.join(","),
            ])
            .args([
                "--node-id",
                &member.to_string(),
                "--listen",
                &self.addresses[&member],
            ])
            .arg("--data-dir")
            .arg(self.dir.path().join(member.to_string()))
            .spawn()
            .unwrap();
        self.running.insert(member, child);
    }

    fn kill(&mut self, member: u64) {
        let mut child = self.running.remove(&member).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn client(&self) -> ControlClient {
        let mut config = ClientConfig::new(self.addresses.values().cloned().collect(), None);
        config.call_timeout = PATIENCE;
        ControlClient::new(config).unwrap()
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        let running: Vec<_> = self.running.keys().copied().collect();
        running.into_iter().for_each(|member| self.kill(member));
    }
}

/// Acknowledged writes, and the longest time between two since the last kill.
#[derive(Default)]
struct Written {
    revisions: BTreeMap<String, Revision>,
    last: Option<Instant>,
    longest_gap: Duration,
}

/// Deploys one pipeline after the other, and notes what was acknowledged.
async fn write(client: ControlClient, written: Arc<Mutex<Written>>, stop: CancellationToken) {
    for number in 0.. {
        if stop.is_cancelled() {
            return;
        }
        let name = format!("p{number}");
        let hour = Duration::from_secs(3600);
        let revision = client.deploy(&pipeline(&name, 1), Some(hour)).await.unwrap();
        let (mut written, now) = (written.lock(), Instant::now());
        let gap = written.last.map_or(Duration::ZERO, |last| now - last);
        written.longest_gap = written.longest_gap.max(gap);
        written.last = Some(now);
        written.revisions.insert(name, revision);
    }
}

/// Waits until all members have the log but for writes under way, so that any can take over; gives the leader.
async fn level(client: &ControlClient) -> u64 {
    let look = || async {
        let status = client.status().await.unwrap();
        let level = status
            .members
            .iter()
            .all(|member| member.matched.is_some_and(|index| index + 4 > status.version));
        level.then_some(status.leader)
    };
    crate::harness::eventually("members that are level", look).await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_acknowledged_write_is_lost_when_leaders_are_killed() {
    let mut members = Members::start(3);
    let client = members.client();
    let (written, stop) = (Arc::new(Mutex::new(Written::default())), CancellationToken::new());
    let writer = tokio::spawn(write(members.client(), written.clone(), stop.clone()));
    let begun = || std::future::ready(written.lock().last);
    crate::harness::eventually("a first write", begun).await;
    let mut gaps = Vec::new();
    for _ in 0..5 {
        let leader = level(&client).await;
        members.kill(leader);
        let before = written.lock().revisions.len();
        // More than may still be on their way, so that the gap is over.
        let resumed = || std::future::ready((written.lock().revisions.len() > before + 5).then_some(()));
        crate::harness::eventually("writes after a kill", resumed).await;
        gaps.push(std::mem::take(&mut written.lock().longest_gap));
        members.run(leader);
    }
    stop.cancel();
    writer.await.unwrap();
    // All at once: what is left is what is on disk.
    for member in 1..=3 {
        members.kill(member);
    }
    (1..=3).for_each(|member| members.run(member));
    let status = client.status().await.unwrap();
    let kept = status.deployments.iter().map(|status| {
        let deployment = status.deployment.as_ref().unwrap();
        (
            deployment.spec.as_ref().unwrap().name.clone(),
            Revision(deployment.revision),
        )
    });
    let kept: BTreeMap<_, _> = kept.collect();
    let written = written.lock();
    assert_eq!(
        written.revisions, kept,
        "each acknowledged write is there, and nothing twice"
    );
    println!("without a write: {gaps:?}");
    assert!(
        gaps.iter().all(|&gap| gap < FAIL_OVER),
        "without a write: {gaps:?}"
    );
}
