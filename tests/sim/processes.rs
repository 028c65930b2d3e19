//! Real members as processes, with links between them that can be cut.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use mosec_wire::control::proto::control_plane_client::ControlPlaneClient;
use mosec_wire::control::{ClientConfig, ControlClient, endpoint};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tonic::transport::Channel;

/// Nothing here takes as long, even on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The members of a control plane. Those that run are killed when it is dropped.
pub struct Members {
    addresses: BTreeMap<u64, String>,
    links: BTreeMap<(u64, u64), Link>,
    running: BTreeMap<u64, Child>,
    dirs: BTreeMap<u64, PathBuf>,
    dir: TempDir,
}

impl Members {
    /// Starts members that know each other by links, which can be cut.
    pub async fn start(count: u64) -> Self {
        let mut members = Self::prepare(count).await;
        (1..=count).for_each(|member| members.run(member));
        members
    }

    pub async fn prepare(count: u64) -> Self {
        // Held together, so that they differ; free again when the members bind them.
        let held: Vec<_> = (0..count)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let addresses: BTreeMap<_, _> = (1..)
            .zip(&held)
            .map(|(id, port)| (id, port.local_addr().unwrap().to_string()))
            .collect();
        drop(held);
        let dir = tempfile::tempdir().unwrap();
        let dirs = (1..=count)
            .map(|id| (id, dir.path().join(id.to_string())))
            .collect();
        let mut links = BTreeMap::new();
        for from in 1..=count {
            for to in (1..=count).filter(|&to| to != from) {
                links.insert((from, to), Link::open(addresses[&to].clone()).await);
            }
        }
        Self {
            addresses,
            links,
            running: BTreeMap::new(),
            dirs,
            dir,
        }
    }

    pub fn run(&mut self, member: u64) {
        let address = |(&id, own): (&u64, &String)| match self.links.get(&(member, id)) {
            Some(link) => format!("{id}={}", link.address),
            None => format!("{id}={own}"),
        };
        let peers: Vec<_> = self.addresses.iter().map(address).collect();
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path(member))
            .unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_mosec-control-plane"))
            .args([
                "--cluster-id",
                "test",
                "--insecure",
                "--log-level",
                "error",
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
            .arg(&self.dirs[&member])
            .stderr(log)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        self.running.insert(member, child);
    }

    fn log_path(&self, member: u64) -> PathBuf {
        self.dir.path().join(format!("{member}.log"))
    }

    /// What a member has said so far.
    pub fn log(&self, member: u64) -> String {
        std::fs::read_to_string(self.log_path(member)).unwrap_or_default()
    }

    pub fn data_dir(&self, member: u64) -> &PathBuf {
        &self.dirs[&member]
    }

    pub fn all(&self) -> Vec<u64> {
        self.addresses.keys().copied().collect()
    }

    pub fn running(&self) -> Vec<u64> {
        self.running.keys().copied().collect()
    }

    /// Ends a member without warning.
    pub fn kill(&mut self, member: u64) {
        if let Some(mut child) = self.running.remove(&member) {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn signal(&self, member: u64, signal: Signal) {
        if let Some(child) = self.running.get(&member) {
            let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
            kill_process(pid, signal).unwrap();
        }
    }

    /// Waits for a member to end by itself.
    pub async fn ended(&mut self, member: u64) -> ExitStatus {
        let child = parking_lot::Mutex::new(self.running.remove(&member).unwrap());
        let look = || std::future::ready(child.lock().try_wait().unwrap());
        eventually("a member's end", look).await
    }

    /// Cuts or heals what goes between `member` and all others.
    pub fn cut_off(&self, member: u64, cut: bool) {
        for ((from, to), link) in &self.links {
            if *from == member || *to == member {
                link.cut(cut);
            }
        }
    }

    pub fn client(&self) -> ControlClient {
        let mut config = ClientConfig::new(self.addresses.values().cloned().collect(), None);
        config.call_timeout = PATIENCE;
        ControlClient::new(config).unwrap()
    }

    /// A bare service client of one member.
    pub fn service(&self, member: u64) -> ControlPlaneClient<Channel> {
        ControlPlaneClient::new(endpoint::channel(&self.addresses[&member], None).unwrap())
    }

    /// Waits until all members have the log but for writes under way, so that any can take over; gives the leader.
    pub async fn level(&self, client: &ControlClient) -> u64 {
        let look = || async {
            let status = client.status().await.ok()?;
            let level = |index: Option<u64>| index.is_some_and(|index| index + 4 > status.version);
            let all = status.members.iter().all(|member| level(member.matched));
            all.then_some(status.leader)
        };
        eventually("members that are level", look).await
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        self.running().into_iter().for_each(|member| self.kill(member));
    }
}

/// One direction of dialling between two members. While it is cut, connections stay and nothing passes.
struct Link {
    address: String,
    cut: watch::Sender<bool>,
}

impl Link {
    async fn open(to: String) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (cut, is_cut) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(join(near, to.clone(), is_cut.clone()));
            }
        });
        Self { address, cut }
    }

    fn cut(&self, cut: bool) {
        self.cut.send_replace(cut);
    }
}

async fn join(near: TcpStream, to: String, mut cut: watch::Receiver<bool>) {
    if cut.wait_for(|cut| !cut).await.is_err() {
        return;
    }
    let Ok(far) = TcpStream::connect(to).await else {
        return;
    };
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    tokio::select! {
        () = pump(near_in, far_out, cut.clone()) => {}
        () = pump(far_in, near_out, cut) => {}
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut cut: watch::Receiver<bool>) {
    let mut piece = vec![0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut piece).await {
        if cut.wait_for(|cut| !cut).await.is_err() || to.write_all(&piece[..length]).await.is_err() {
            return;
        }
    }
}

/// Waits until `look` gives something.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, look: impl Fn() -> F) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < end, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
