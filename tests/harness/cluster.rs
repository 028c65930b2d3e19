//! A whole cluster on loopback: control-plane nodes, gateways and agents, each a process of its own.

use std::collections::BTreeMap;
use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::Context as _;
use tempfile::TempDir;

use crate::{Client, Daemon, Status, binary, eventually, kill, python};

/// What a cluster consists of.
pub struct Options {
    /// Control-plane nodes: 1, 3 or 5.
    pub control: usize,
    pub gateways: usize,
    /// How long certificates are good. The members then sign, and all others join with tokens; else all have certificates
    /// that were issued by hand.
    pub cert_ttl: Option<&'static str>,
    /// Names of the agents. Each has the label `zone` with its own name.
    pub agents: Vec<&'static str>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            control: 3,
            gateways: 1,
            cert_ttl: None,
            agents: vec!["a", "b"],
        }
    }
}

/// A running cluster. Dropping it kills every process.
pub struct Cluster {
    pub control: BTreeMap<u64, Daemon>,
    pub gateways: Vec<Daemon>,
    pub agents: BTreeMap<&'static str, Daemon>,
    /// Where the control-plane nodes are now.
    peers: BTreeMap<u64, String>,
    /// Where those were that the cluster began with, for their flags.
    founders: BTreeMap<u64, String>,
    /// Where the agents' links are, the same at each start.
    links: BTreeMap<&'static str, String>,
    /// Where agents say that their links are, if that is elsewhere.
    advertised: BTreeMap<&'static str, String>,
    addresses: Vec<String>,
    cert_ttl: Option<&'static str>,
    dir: TempDir,
}

impl Cluster {
    /// Starts everything and waits until a leader answers and every agent is up.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let mut dir = tempfile::Builder::new().prefix("mosec-cluster-").tempdir()?;
        dir.disable_cleanup(true);
        let peers: BTreeMap<_, _> = (1..=options.control as u64)
            .zip(free_ports(options.control)?)
            .collect();
        let mut cluster = Self {
            control: BTreeMap::new(),
            gateways: Vec::new(),
            agents: BTreeMap::new(),
            founders: peers.clone(),
            peers,
            links: BTreeMap::new(),
            advertised: BTreeMap::new(),
            addresses: Vec::new(),
            cert_ttl: options.cert_ttl,
            dir,
        };
        cluster.run("mosectl", &["ca", "init", "--dir", &cluster.file("ca")])?;
        cluster.issue("operator", "tests")?;
        for id in cluster.peers.keys().copied().collect::<Vec<_>>() {
            if cluster.cert_ttl.is_none() {
                cluster.issue("control-plane", &format!("control-{id}"))?;
            }
            cluster.start_control(id)?;
        }
        for name in options.agents {
            cluster.admit("agent", name)?;
            cluster.start_agent(name)?;
        }
        for index in 0..options.gateways {
            cluster.start_gateway(index).await?;
        }
        let agents = cluster.agents.len();
        cluster
            .until("all agents are up", Duration::from_secs(30), |status| {
                status.nodes_up() == agents
            })
            .await?;
        Ok(cluster)
    }

    /// A client of one gateway.
    pub fn client(&self, gateway: usize) -> Client {
        Client::new(&self.addresses[gateway])
    }

    pub fn start_control(&mut self, id: u64) -> anyhow::Result<()> {
        let name = format!("control-{id}");
        let args = [
            "--cluster-id=test".into(),
            format!("--node-id={id}"),
            format!("--peers={}", self.peer_list()),
            format!("--listen={}", self.founders[&id]),
            format!("--data-dir={}", self.file(&format!("data-{id}"))),
            format!("--identity={}", self.file(&name)),
        ];
        let has_token = Path::new(&self.file(&format!("{name}.token"))).exists();
        let admission = match self.cert_ttl {
            Some(ttl) if !has_token => {
                vec![format!("--ca={}", self.file("ca")), format!("--cert-ttl={ttl}")]
            }
            _ => self.joining(&name).into_iter().collect(),
        };
        let args: Vec<_> = args.into_iter().chain(admission).collect();
        self.control
            .insert(id, self.daemon(&name, "mosec-control-plane", &args)?);
        Ok(())
    }

    /// Has another control-plane node join, and starts it with the settings that are written for it. It is no member yet.
    /// Gives its number and address, as `mosectl cluster add` takes them.
    pub fn join_control(&mut self, id: u64) -> anyhow::Result<String> {
        let name = format!("control-{id}");
        self.admit("control-plane", &name)?;
        let address = free_ports(1)?.remove(0);
        let dir = self.file(&format!("joined-{id}"));
        let args = [
            "cluster",
            "join",
            "--token",
            &format!("@{}", self.file(&format!("{name}.token"))),
            "--address",
            &address,
            "--dir",
            &dir,
            "--data-dir",
            &self.file(&format!("data-{id}")),
            "--listen=127.0.0.1",
        ];
        let joined = self.mosectl(&args)?;
        anyhow::ensure!(joined.status.success(), "no member:\n{}", text(&joined));
        self.start_joined(id)?;
        self.peers.insert(id, address.clone());
        Ok(format!("{id}={address}"))
    }

    /// Starts a control-plane node that has joined. Here it gets the authority's key, too, as a person would see to it.
    pub fn start_joined(&mut self, id: u64) -> anyhow::Result<()> {
        let settings = std::fs::read_to_string(self.file(&format!("joined-{id}/control-plane.env")))?;
        let flags = settings.lines().filter_map(|line| {
            let (name, value) = line.strip_prefix("MOSEC_")?.split_once('=')?;
            let name = name.to_lowercase().replace('_', "-");
            Some(format!("--{name}={value}"))
        });
        let args: Vec<_> = flags.chain([format!("--ca={}", self.file("ca"))]).collect();
        let daemon = self.daemon(&format!("control-{id}"), "mosec-control-plane", &args)?;
        self.control.insert(id, daemon);
        Ok(())
    }

    /// Waits for a control-plane node that was removed to end by itself; its log.
    pub async fn removed_control(&mut self, id: u64) -> anyhow::Result<String> {
        let mut daemon = self.control.remove(&id).context("it runs")?;
        self.peers.remove(&id);
        let code = daemon.ended(Duration::from_secs(20)).await?;
        anyhow::ensure!(code == Some(1), "it ended with {code:?}");
        Ok(daemon.log())
    }

    /// Has a control-plane node join anew, with a token, on a host that has nothing of it.
    pub fn replace_control(&mut self, id: u64) -> anyhow::Result<()> {
        let name = format!("control-{id}");
        self.control.get_mut(&id).context("it runs")?.kill()?;
        for left in [&format!("data-{id}"), &name] {
            std::fs::remove_dir_all(self.file(left))?;
        }
        std::fs::remove_file(self.dir.path().join(format!("{name}.log")))?;
        self.admit("control-plane", &name)?;
        self.start_control(id)
    }

    pub fn start_agent(&mut self, name: &'static str) -> anyhow::Result<()> {
        let link = match self.links.get(name) {
            Some(link) => link.clone(),
            None => UdpSocket::bind("127.0.0.1:0")?.local_addr()?.to_string(),
        };
        self.links.insert(name, link.clone());
        let args = [
            format!("--listen={link}"),
            format!("--state-dir={}", self.file(&format!("state-{name}"))),
            format!("--control-plane={}", self.endpoints()),
            format!("--identity={}", self.file(name)),
            format!("--python={}", python().display()),
            format!("--label=zone={name}"),
        ];
        let advertised = self.advertised.get(name);
        let advertised = advertised.map(|address| format!("--advertise={address}"));
        let args: Vec<_> = args
            .into_iter()
            .chain(self.joining(name))
            .chain(advertised)
            .collect();
        self.agents
            .insert(name, self.daemon(name, "mosec-node-agent", &args)?);
        Ok(())
    }

    /// Has an agent say from its next start on that its link is elsewhere, or no more.
    pub fn advertise(&mut self, name: &'static str, address: Option<&str>) {
        match address {
            Some(address) => self.advertised.insert(name, address.to_owned()),
            None => self.advertised.remove(name),
        };
    }

    /// Starts an agent that the cluster has not had before.
    pub fn join_agent(&mut self, name: &'static str) -> anyhow::Result<()> {
        self.issue("agent", name)?;
        self.start_agent(name)
    }

    async fn start_gateway(&mut self, index: usize) -> anyhow::Result<()> {
        self.admit("gateway", &format!("gateway-{index}"))?;
        let daemon = self.gateway(index, "0")?;
        self.addresses
            .push(daemon.logged("http service is running", "address").await?);
        self.gateways.push(daemon);
        Ok(())
    }

    /// Kills a gateway and starts it again under the same address.
    pub async fn restart_gateway(&mut self, index: usize) -> anyhow::Result<()> {
        self.gateways[index].kill()?;
        let address = &self.addresses[index];
        let (_, port) = address.rsplit_once(':').context("an address has a port")?;
        self.gateways[index] = self.gateway(index, port)?;
        let client = self.client(index);
        eventually("the gateway is back", Duration::from_secs(10), || async {
            client.get("/").await.ok().map(drop)
        })
        .await
    }

    fn gateway(&self, index: usize, port: &str) -> anyhow::Result<Daemon> {
        let name = format!("gateway-{index}");
        let args = [
            "--address=127.0.0.1".into(),
            format!("--port={port}"),
            format!("--state-dir={}", self.file(&format!("state-{name}"))),
            format!("--control-plane={}", self.endpoints()),
            format!("--identity={}", self.file(&name)),
        ];
        let args: Vec<_> = args.into_iter().chain(self.joining(&name)).collect();
        self.daemon(&name, "mosec-gateway", &args)
    }

    /// Runs `mosectl` against this cluster.
    pub fn mosectl(&self, args: &[&str]) -> anyhow::Result<Output> {
        Command::new(binary("mosectl"))
            .args(args)
            .env("MOSEC_CONTROL_PLANE", self.endpoints())
            .env("MOSEC_IDENTITY", self.file("operator-tests"))
            .env("MOSEC_PYTHON", python())
            .output()
            .context("cannot run mosectl")
    }

    /// Runs `mosectl restore` for a member of this cluster, into its own folder. The backup says who the members are.
    pub fn restore(&self, member: u64, backup: &str, cluster_id: &str) -> anyhow::Result<Output> {
        self.mosectl(&[
            "restore",
            backup,
            &format!("--data-dir={}", self.file(&format!("data-{member}"))),
            &format!("--cluster-id={cluster_id}"),
            &format!("--node-id={member}"),
        ])
    }

    /// The number of the newest revision of a pipeline.
    pub fn newest_revision(&self, pipeline: &str) -> anyhow::Result<u64> {
        let output = self.mosectl(&["history", pipeline, "--output", "json"])?;
        anyhow::ensure!(output.status.success(), "no history:\n{}", text(&output));
        let history: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let numbers = history.as_array().into_iter().flatten();
        let newest = numbers.filter_map(|row| row["revision"].as_u64()).max();
        newest.with_context(|| format!("no revision in {history}"))
    }

    /// The members as `--peers` has them.
    fn peer_list(&self) -> String {
        let peers = self
            .founders
            .iter()
            .map(|(id, address)| format!("{id}={address}"));
        peers.collect::<Vec<_>>().join(",")
    }

    /// Deploys a manifest and waits until it serves here and at the gateways.
    pub async fn deploy(&self, manifest: &str) -> anyhow::Result<()> {
        let file = self.dir.path().join("pipeline.yaml");
        std::fs::write(&file, manifest)?;
        let output = self.mosectl(&["deploy", &file.to_string_lossy()])?;
        anyhow::ensure!(output.status.success(), "deploy failed:\n{}", text(&output));
        Ok(())
    }

    /// Waits until a path of a new deployment is known to a gateway.
    pub async fn routed(&self, gateway: usize, path: &str) -> anyhow::Result<()> {
        let client = self.client(gateway);
        eventually("the gateway knows the route", Duration::from_secs(10), || async {
            // No body: answered by the gateway itself once it knows the path.
            client
                .post(path, "")
                .await
                .ok()
                .filter(|answer| answer.status == 200)
                .map(drop)
        })
        .await
    }

    pub fn status(&self) -> anyhow::Result<Status> {
        let output = self.mosectl(&["status", "--output", "json"])?;
        anyhow::ensure!(output.status.success(), "status failed:\n{}", text(&output));
        Status::parse(&output.stdout)
    }

    /// Waits until the cluster's status is as wanted.
    pub async fn until(
        &self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&Status) -> bool,
    ) -> anyhow::Result<Status> {
        let found = eventually(what, limit, || async {
            self.status().ok().filter(|status| wanted(status))
        });
        match found.await {
            Ok(status) => Ok(status),
            Err(error) => Err(error.context(format!("status: {:?}", self.status()))),
        }
    }

    /// Kills a worker of a stage that is ready. Gives back its process's id.
    pub fn kill_worker(&self, pipeline: &str, stage: &str) -> anyhow::Result<u32> {
        let workers = self.status()?.workers(pipeline, stage);
        let ready = workers.iter().find(|worker| worker.state == "ready");
        let pid = ready
            .and_then(|worker| worker.pid)
            .with_context(|| format!("no worker of {stage} is ready"))?;
        kill(pid)?;
        Ok(pid)
    }

    /// The flags by which a command reaches one control-plane node alone, as the tests' operator.
    pub fn flags_for(&self, id: u64) -> [String; 2] {
        [
            format!("--control-plane={}", self.peers[&id]),
            format!("--identity={}", self.file("operator-tests")),
        ]
    }

    /// The control-plane node that leads.
    pub fn leader(&self) -> anyhow::Result<u64> {
        self.status()?.leader().context("nobody leads")
    }

    /// Ends a cluster whose test has passed, and removes its folder. Without this the folder stays, for its logs.
    pub fn end(mut self) {
        self.dir.disable_cleanup(false);
    }

    fn daemon(&self, name: &str, program: &str, args: &[String]) -> anyhow::Result<Daemon> {
        Daemon::start(name, self.dir.path(), &binary(program), args)
    }

    /// Gives a daemon what it needs to be let in: a token, or a certificate.
    fn admit(&self, role: &str, name: &str) -> anyhow::Result<()> {
        if self.cert_ttl.is_none() {
            return self.issue(role, name);
        }
        let output = self.mosectl(&["token", "create", "--role", role, "--name", name])?;
        anyhow::ensure!(output.status.success(), "no token:\n{}", text(&output));
        std::fs::write(self.file(&format!("{name}.token")), &output.stdout)?;
        Ok(())
    }

    /// The flag with which a daemon joins, if it does.
    fn joining(&self, name: &str) -> Option<String> {
        let token = self.file(&format!("{name}.token"));
        self.cert_ttl.map(|_| format!("--join=@{token}"))
    }

    fn issue(&self, role: &str, name: &str) -> anyhow::Result<()> {
        // Names of daemons are unique; the operator's folder says its role too.
        let out = if role == "operator" {
            format!("operator-{name}")
        } else {
            name.to_owned()
        };
        self.run(
            "mosectl",
            &[
                "ca",
                "issue",
                "--dir",
                &self.file("ca"),
                "--role",
                role,
                "--name",
                name,
                "--out",
                &self.file(&out),
            ],
        )
    }

    fn run(&self, program: &str, args: &[&str]) -> anyhow::Result<()> {
        let output = Command::new(binary(program)).args(args).output()?;
        anyhow::ensure!(
            output.status.success(),
            "{program} {args:?} failed:\n{}",
            text(&output)
        );
        Ok(())
    }

    fn endpoints(&self) -> String {
        self.peers.values().cloned().collect::<Vec<_>>().join(",")
    }

    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).to_string_lossy().into_owned()
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the cluster's logs are in {}", self.dir.path().display());
        }
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Addresses whose ports are free now. Peers have to know each other's before they start.
fn free_ports(count: usize) -> anyhow::Result<Vec<String>> {
    let listeners: Vec<_> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect::<Result<_, _>>()?;
    listeners
        .iter()
        .map(|listener| Ok(listener.local_addr()?.to_string()))
        .collect()
}
