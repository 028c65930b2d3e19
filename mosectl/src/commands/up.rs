//! `mosectl up`: the whole system in this process.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use mosec_telemetry::{LogFormat, init_logging, stop_on_signal};
use mosec_types::topology::NodeHealth;
use mosec_wire::control::{ClientConfig, ControlClient};
use tokio::time::{Instant, sleep};

use crate::context::{Context, ContextDir, Published};
use crate::failure::{Failure, Result};
use crate::report::{Report, RevisionReport};
use crate::script;
use crate::system::{Options, System};
use crate::terminal::{self, print_error};

/// How long the parts may take to find each other; on an idle machine it is a second.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(50);
/// What tasks that hang are given at the end.
const LEAVE: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  mosectl up                               a cluster until ctrl-C, with nothing left behind
  mosectl up --data state --port 9000      the same pipelines after the next start
  mosectl up --agents 2                    two nodes, to try placement and drains")]
pub(crate) struct Args {
    /// Address or host name of the gateway.
    #[arg(long, default_value = "127.0.0.1")]
    address: String,
    /// Port of the gateway; 0 takes any that is free.
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// Number of node agents.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    agents: u16,
    /// Folder of the cluster's state and certificates. A temporary one, removed at the end, where absent.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Python interpreter of the workers.
    #[arg(long, env = "MOSEC_PYTHON", default_value = "python3")]
    python: String,
    /// debug, info, warning, error, or a filter as `mosec=debug`.
    #[arg(long, env = "MOSEC_LOG_LEVEL", default_value = "warning")]
    log_level: String,
}

pub(crate) fn run(args: Args) -> Result {
    init_logging(&args.log_level, LogFormat::Text);
    let Args {
        address,
        port,
        agents,
        python,
        data,
        ..
    } = args;
    let python = script::working_interpreter(&python)?;
    let (data, temporary) = match data {
        Some(dir) => (dir, None),
        None => {
            let dir = tempfile::Builder::new()
                .prefix("mosec-up-")
                .tempdir()
                .context("cannot make a folder")?;
            (dir.path().to_owned(), Some(dir))
        }
    };
    let options = Options {
        address,
        port,
        agents,
        python,
        data,
    };
    let runtime = tokio::runtime::Runtime::new()?;
    let result = runtime.block_on(serve(&options, temporary.is_some()));
    runtime.shutdown_timeout(LEAVE);
    if let Some(dir) = temporary {
        dir.close().context("cannot remove the temporary folder")?;
    }
    result
}

async fn serve(options: &Options, temporary: bool) -> Result {
    let stop = stop_on_signal()?;
    let kept = if temporary { ", removed at the end" } else { "" };
    print_error(&format!("state is in {}{kept}\n", options.data.display()));
    let system = System::build(options).await.map_err(explain)?;
    let context = Context {
        control_plane: vec![system.control_plane()],
        identity: system.operator_dir().clone(),
        gateway: system.url(),
        pid: std::process::id(),
    };
    print_error(&format!("control plane on {}\n", system.control_plane()));
    let client = ClientConfig::new(context.control_plane.clone(), Some(system.operator().clone()));
    let client = ControlClient::new(client)?;
    let mut running = tokio::spawn(system.run(stop.clone()));
    let ready = tokio::select! {
        ended = &mut running => return Ok(ended??),
        ready = ready(&client, options.agents) => ready,
    };
    let published = match ready {
        Ok(report) => announce(&report, &context),
        Err(error) => Err(error),
    };
    if published.is_err() {
        stop.cancel();
    }
    tokio::select! {
        biased; // told to stop, a small cluster ends as fast as this looks
        () = stop.cancelled() => {}
        ended = &mut running => return Ok(ended??),
    }
    print_error("stopping: requests in flight are finished first\n");
    let ended = running.await;
    published?;
    Ok(ended??)
}

fn explain(error: anyhow::Error) -> Failure {
    let taken = error.chain().any(|cause| {
        let io = cause.downcast_ref::<std::io::Error>();
        io.is_some_and(|io| io.kind() == std::io::ErrorKind::AddrInUse)
    });
    let failure = Failure::from(error);
    if taken {
        failure.hint("--port takes another one, 0 any that is free")
    } else {
        failure
    }
}

/// Waits until every agent's heartbeats reach the leader.
async fn ready(client: &ControlClient, agents: u16) -> Result<Report> {
    let deadline = Instant::now() + READY_TIMEOUT;
    let names: Vec<_> = (1..=agents).map(|number| format!("node-{number}")).collect();
    loop {
        let report = Report::try_from(client.status().await?)?;
        let is_up = |name: &String| {
            let node = report.nodes.iter().find(|node| node.name == *name);
            node.is_some_and(|node| node.health == NodeHealth::Up.name() && node.silent_ms.is_some())
        };
        match names.iter().find(|&name| !is_up(name)) {
            None => return Ok(report),
            Some(name) if Instant::now() >= deadline => {
                return Err(anyhow::anyhow!("{name} has not joined within {READY_TIMEOUT:?}").into());
            }
            Some(_) => sleep(LOOK).await,
        }
    }
}

/// Tells the user and other `mosectl` calls.
fn announce(report: &Report, context: &Context) -> Result<Option<Published>> {
    for node in &report.nodes {
        print_error(&format!("{} is {}\n", node.name, node.health));
    }
    for revision in report
        .pipelines
        .iter()
        .filter(|revision| revision.reason.is_none())
    {
        let RevisionReport {
            name,
            revision: number,
            phase,
            routes,
            ..
        } = revision;
        let (routes, workers) = (routes.join(" "), revision.readiness());
        print_error(&format!(
            "{name} revision {number} is {phase} on {routes} (workers ready: {workers})\n"
        ));
    }
    let published = ContextDir::of_user()
        .publish(context)
        .context("other mosectl calls would not find this cluster")?;
    let Context {
        control_plane,
        identity,
        gateway,
        ..
    } = context;
    if published.is_none() {
        let identity = identity.display();
        print_error(&format!(
            "another `mosectl up` runs here: to reach this one, export MOSEC_CONTROL_PLANE={} MOSEC_IDENTITY={identity}\n",
            control_plane.join(",")
        ));
    }
    terminal::print(&format!(
        "ready on {gateway}  (deploy with: mosectl deploy server.py)\n"
    ))?;
    Ok(published)
}
