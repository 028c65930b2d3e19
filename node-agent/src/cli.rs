//! The `mosec-node-agent` command: arguments, assembly, exit code.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use mosec_telemetry::{run_daemon, stop_on_signal};
use mosec_types::{Gpu, NodeId};
use mosec_wire::control::{JoinTarget, host_name, identity_in, parse_address};
use mosec_wire::tls::Role;

use crate::host::{self, parse_device};
use crate::{Claim, Config, OutputLimits, service};

/// Runs the Python workers placed on this host, and passes batches to them.
#[derive(Debug, Parser)]
#[command(name = "mosec-node-agent", version)]
struct Args {
    /// UDP address of the link; port 0 takes any that is free.
    #[arg(long, env = "MOSEC_LISTEN", default_value = "0.0.0.0:7443")]
    listen: SocketAddr,
    /// host:port under which gateways and other agents reach the link. Needed where that listens on
    /// all addresses, else the listening address.
    #[arg(long, env = "MOSEC_ADVERTISE")]
    advertise: Option<String>,
    /// Control-plane nodes, as host:port, separated by commas.
    #[arg(long, env = "MOSEC_CONTROL_PLANE", value_delimiter = ',', required = true, value_parser = parse_address)]
    control_plane: Vec<String>,
    /// Folder with ca.pem, cert.pem and key.pem of an agent; the certificate's name is the node's.
    #[arg(long, env = "MOSEC_IDENTITY")]
    identity: PathBuf,
    /// Token to join the cluster with, or @ and a file with it. Only used where the identity's folder has none yet.
    #[arg(long, env = "MOSEC_JOIN_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    join: Option<String>,
    /// Name to join as. The token's own where absent, else the host's.
    #[arg(long, env = "MOSEC_NAME")]
    name: Option<String>,
    /// Label of this node, as key=value. May be repeated.
    #[arg(long = "label", value_parser = parse_label)]
    labels: Vec<(String, String)>,
    /// GPU of this node, as MODEL:MEMORY (H100:80GiB). May be repeated; those that the NVIDIA driver tells of where
    /// absent.
    #[arg(long = "gpu", value_parser = parse_device)]
    gpus: Vec<Gpu>,
    /// Python interpreter of the workers.
    #[arg(long, env = "MOSEC_PYTHON", default_value = "python3")]
    python: String,
    /// Most shared memory for payloads, in MiB.
    #[arg(long, env = "MOSEC_ARENA_MIB", default_value_t = 1024)]
    arena_mib: usize,
    /// Folder that keeps the last topology and the code it names, so that this agent runs its workers even if it starts
    /// while the control plane is down. Where absent, code is in a temporary folder.
    #[arg(long, env = "MOSEC_STATE_DIR")]
    state_dir: Option<PathBuf>,
    /// Most output of workers that is kept for `mosectl logs`, in MiB. With 0 none is kept: it goes straight to the output of
    /// this process.
    #[arg(long, env = "MOSEC_OUTPUT_MIB", default_value_t = 16)]
    output_mib: usize,
    /// Address of the admin endpoint (/metrics, /healthz). None where absent.
    #[arg(long, env = "MOSEC_ADMIN")]
    admin: Option<SocketAddr>,
    /// debug, info, warning, error, or a filter as `mosec=debug`.
    #[arg(long, env = "MOSEC_LOG_LEVEL", default_value = "info")]
    log_level: String,
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| format!("expected key=value, found {text:?}"))?;
    if key.is_empty() {
        return Err(format!("expected a key before '=', found {text:?}"));
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// What is kept of the output of workers, in so many MiB.
fn kept_output(mib: usize) -> Option<OutputLimits> {
    (mib > 0).then(|| OutputLimits {
        total_bytes: mib.saturating_mul(1 << 20),
        ..Default::default()
    })
}

/// Runs the command with these arguments, the program's name first; its exit code.
pub fn main(args: impl IntoIterator<Item = OsString>) -> u8 {
    run_daemon(args, |args: &Args| &args.log_level, "node agent failed", run)
}

fn run(args: Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    // Before the token is used: it may be good for one join.
    let claim = Claim::take(args.listen, args.advertise, args.admin, args.state_dir);
    let claim = runtime.block_on(claim)?;
    let host = host_name();
    let target = JoinTarget {
        dir: &args.identity,
        control_plane: &args.control_plane,
        roles: &[Role::Agent],
        name: args.name.as_deref(),
        fallback_name: host.as_deref(),
    };
    let identity = runtime.block_on(identity_in(&target, args.join.as_deref()))?;
    let mut config = Config::new(NodeId::new(identity.name())?);
    config.python = args.python;
    config.arena.max_bytes = args.arena_mib << 20;
    config.output = kept_output(args.output_mib);
    config.devices = if args.gpus.is_empty() {
        host::devices()
    } else {
        host::declared(args.gpus)
    };
    let capacity = host::capacity(&config.devices);
    let options = service::Options {
        config,
        claim,
        control_plane: args.control_plane,
        labels: BTreeMap::from_iter(args.labels),
        capacity,
        code_dir: None,
        identity: identity.into(),
        identity_dir: Some(args.identity),
    };
    runtime.block_on(async {
        let stop = stop_on_signal()?;
        let service = service::Service::build(options).await?;
        tracing::info!(address = service.address(), "node agent is running");
        service.run(stop).await
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_control_plane_have_a_port() {
        let parse = |addresses: &str| {
            let line = ["x", "--identity=/i", "--control-plane", addresses];
            Args::try_parse_from(line).map(|args| args.control_plane)
        };
        assert_eq!(parse("a:1,b:2").unwrap(), ["a:1", "b:2"]);
        let text = parse("a:1,10.0.0.1").unwrap_err().to_string();
        assert!(
            text.contains("'10.0.0.1' for '--control-plane")
                && text.contains("expected host:port, as 10.0.0.1:7400"),
            "{text}"
        );
    }
}
