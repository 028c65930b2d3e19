//! The `mosec-gateway` command: arguments, assembly, exit code.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Parser;
use mosec_telemetry::{ServiceSeries, run_daemon, stop_on_signal};
use mosec_wire::control::{JoinTarget, host_name, identity_in, parse_address};
use mosec_wire::tls::Role;

use crate::{Config, Port, service};

/// Answers HTTP requests: batches them and sends them to node agents.
#[derive(Debug, Parser)]
#[command(name = "mosec-gateway", version)]
struct Args {
    /// Address or host name to listen on.
    #[arg(long, env = "MOSEC_ADDRESS", default_value = "0.0.0.0")]
    address: String,
    /// Port to listen on; 0 takes any that is free.
    #[arg(long, env = "MOSEC_PORT", default_value_t = 8000)]
    port: u16,
    /// Control-plane nodes, as host:port, separated by commas.
    #[arg(long, env = "MOSEC_CONTROL_PLANE", value_delimiter = ',', required = true, value_parser = parse_address)]
    control_plane: Vec<String>,
    /// Folder with ca.pem, cert.pem and key.pem of a gateway.
    #[arg(long, env = "MOSEC_IDENTITY")]
    identity: PathBuf,
    /// Token to join the cluster with, or @ and a file with it. Only used where the identity's folder has none yet.
    #[arg(long, env = "MOSEC_JOIN_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    join: Option<String>,
    /// Name to join as. The token's own where absent, else the host's.
    #[arg(long, env = "MOSEC_NAME")]
    name: Option<String>,
    /// Folder that keeps the last topology, so that this gateway serves even if it starts while the control plane is
    /// down. None where absent.
    #[arg(long, env = "MOSEC_STATE_DIR")]
    state_dir: Option<PathBuf>,
    /// Takes and gives bodies compressed with gzip or zstd.
    #[arg(long, env = "MOSEC_COMPRESSION")]
    compression: bool,
    /// Most connections of clients at once; more are answered 503.
    #[arg(long, env = "MOSEC_MAX_CONNECTIONS", default_value_t = Config::default().max_connections)]
    max_connections: usize,
    /// Most memory for request bodies, in MiB; requests that find none are answered 503.
    #[arg(long, env = "MOSEC_BODY_MIB", default_value_t = Config::default().max_body_bytes >> 20)]
    body_mib: u64,
    /// Prefix of the service's metrics.
    #[arg(long, env = "MOSEC_NAMESPACE", default_value = "mosec_service")]
    namespace: String,
    /// debug, info, warning, error, or a filter as `mosec=debug`.
    #[arg(long, env = "MOSEC_LOG_LEVEL", default_value = "info")]
    log_level: String,
}

/// Runs the command with these arguments, the program's name first; its exit code.
pub fn main(args: impl IntoIterator<Item = OsString>) -> u8 {
    run_daemon(args, |args: &Args| &args.log_level, "gateway failed", run)
}

fn run(args: Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    // Before the token is used: it may be good for one join.
    let port = runtime.block_on(Port::take(&args.address, args.port))?;
    let host = host_name();
    let target = JoinTarget {
        dir: &args.identity,
        control_plane: &args.control_plane,
        roles: &[Role::Gateway],
        name: args.name.as_deref(),
        fallback_name: host.as_deref(),
    };
    let identity = runtime.block_on(identity_in(&target, args.join.as_deref()))?;
    let config = Config {
        address: args.address,
        port: args.port,
        state_dir: args.state_dir,
        series: ServiceSeries {
            namespace: args.namespace,
            timeout: None,
        },
        compression: args.compression,
        max_connections: args.max_connections,
        max_body_bytes: args.body_mib.saturating_mul(1 << 20),
        ..Default::default()
    };
    runtime.block_on(async {
        let stop = stop_on_signal()?;
        let service =
            service::Service::build_on(port, config, args.control_plane, identity, Some(args.identity))?;
        tracing::info!(address = %service.local_addr()?, "http service is running");
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
