//! `mosectl cluster init` and `join`: what a member is started with.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use mosec_types::NodeId;
use mosec_wire::control::{ClientConfig, ControlClient, JoinTarget, host_name, parse_address, port_of};
use mosec_wire::tls::{ClusterCa, Role};

use super::{MemberAt, Places, settings, text_of};
use crate::failure::{Failure, Result};
use crate::login::{join_failure, joined};
use crate::terminal;

/// File of a member's settings.
const SETTINGS: &str = "control-plane.env";
/// Members that get the authority's key: one of two may be lost, and no more hosts than needed are worth breaking into.
const SIGNERS: usize = 2;

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  mosectl cluster init --name prod --members 10.0.0.1:7400,10.0.0.2:7400,10.0.0.3:7400 --dir prod")]
pub(super) struct Init {
    /// Name of the cluster.
    #[arg(long)]
    name: String,
    /// Addresses of the 1, 3 or 5 members, as host:port, separated by commas. They are numbered in this order.
    #[arg(long, value_delimiter = ',', required = true)]
    members: Vec<String>,
    /// Folder to write into: an authority, an admin's identity, and a folder for each member.
    #[arg(long)]
    dir: PathBuf,
    /// Name of the admin, as it is in the audit trail.
    #[arg(long, default_value = "admin", value_parser = |text: &str| NodeId::new(text))]
    admin: NodeId,
    /// Where each member's folder will be on its host.
    #[arg(long, default_value = "/etc/mosec")]
    install_dir: PathBuf,
    #[command(flatten)]
    places: Places,
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  mosectl cluster join --control-plane 10.0.0.1:7400 --token @control.token --address 10.0.0.4:7400")]
pub(super) struct Join {
    /// Some members, as host:port, separated by commas.
    #[arg(
        long,
        env = "MOSEC_CONTROL_PLANE",
        value_name = "HOST:PORT,..",
        value_delimiter = ',',
        value_parser = parse_address,
        required = true
    )]
    control_plane: Vec<String>,
    /// The token, or @ and a file with it, from `mosectl token create --role control-plane`.
    #[arg(long, env = "MOSEC_JOIN_TOKEN", hide_env_values = true)]
    token: String,
    /// Address under which the others will reach this member, as host:port.
    #[arg(long, value_parser = |text: &str| port_of(text).map(|_| text.to_owned()))]
    address: String,
    /// The member's number. Where absent, the next after those that there are.
    #[arg(long)]
    id: Option<u64>,
    /// Name in its certificate. Where absent, the token's, else the host's.
    #[arg(long)]
    name: Option<String>,
    /// Folder to write its identity and settings into.
    #[arg(long, default_value = "/etc/mosec")]
    dir: PathBuf,
    #[command(flatten)]
    places: Places,
}

pub(super) fn init(args: &Init) -> Result {
    if ![1, 3, 5].contains(&args.members.len()) {
        let found = args.members.len();
        return Err(
            Failure::usage(format!("--members: expected 1, 3 or 5, found {found}"))
                .hint("an even number tolerates no more losses than one less"),
        );
    }
    if let Some(twice) = (1..args.members.len()).find(|&at| args.members[..at].contains(&args.members[at])) {
        return Err(Failure::usage(format!(
            "--members: {} comes twice",
            args.members[twice]
        )));
    }
    if !(1..=64).contains(&args.name.len()) || settings(&[("--name", args.name.clone())]).is_err() {
        return Err(Failure::usage(format!(
            "--name: expected 1 to 64 bytes, without spaces and what a shell would change, found {:?}",
            args.name
        )));
    }
    let ports = args.members.iter().map(|address| port_of(address));
    let ports: Result<Vec<_>, _> = ports.collect();
    let ports = ports.map_err(|problem| Failure::usage(format!("--members: {problem}")))?;
    let is_used = args.dir.read_dir().is_ok_and(|mut found| found.next().is_some());
    if is_used {
        return Err(Failure::usage(format!(
            "--dir: {} is not empty",
            args.dir.display()
        )));
    }
    let peers: Vec<_> = (1..)
        .zip(&args.members)
        .map(|(id, address)| {
            MemberAt {
                id,
                address: address.clone(),
            }
            .to_string()
        })
        .collect();
    // All that can be wrong is found before the first file is written: the command is run again in the same folder.
    let (data_dir, install_dir) = (absolute(&args.places.data_dir)?, absolute(&args.install_dir)?);
    let mut texts = Vec::new();
    for (at, port) in ports.into_iter().enumerate() {
        let mut lines = vec![
            ("MOSEC_CLUSTER_ID", args.name.clone()),
            ("MOSEC_NODE_ID", (at + 1).to_string()),
            ("MOSEC_LISTEN", args.places.listen_on(port)),
            ("MOSEC_PEERS", peers.join(",")),
            ("MOSEC_DATA_DIR", text_of(&data_dir)?),
            ("MOSEC_IDENTITY", text_of(&install_dir.join("identity"))?),
        ];
        if at < SIGNERS {
            lines.push(("MOSEC_CA", text_of(&install_dir.join("ca"))?));
        }
        texts.push(settings(&lines)?);
    }
    let ca = ClusterCa::create()?;
    ca.save(&args.dir.join("ca"))?;
    ca.issue(Role::Admin, args.admin.as_str())?
        .save(&args.dir.join("admin"))?;
    for (at, text) in texts.iter().enumerate() {
        let id = at + 1;
        let dir = args.dir.join(format!("control-{id}"));
        ca.issue(Role::ControlPlane, &format!("control-{id}"))?
            .save(&dir.join("identity"))?;
        if at < SIGNERS {
            ca.save(&dir.join("ca"))?;
        }
        write(&dir.join(SETTINGS), text)?;
    }
    Ok(terminal::print(&founded(args))?)
}

/// What comes next, for people.
fn founded(args: &Init) -> String {
    let (dir, install) = (args.dir.display(), args.install_dir.display());
    let mut text = format!("made what the members of {} are started with\n", args.name);
    for (id, address) in (1..).zip(&args.members) {
        text += &format!("  {dir}/control-{id}  goes to {install} on the host of {address}\n");
    }
    text += &format!(
        "{dir}/ca has the authority's key: keep a copy where no process can read it\n\
         start each member with the settings in {install}/{SETTINGS}:\n  \
         set -a; . {install}/{SETTINGS}; exec mosec-control-plane\n\
         then, here:\n  \
         export MOSEC_CONTROL_PLANE={} MOSEC_IDENTITY={dir}/admin\n  \
         mosectl cluster status\n",
        args.members.join(",")
    );
    text
}

pub(super) async fn join(args: Join) -> Result {
    let (dir, data_dir) = (absolute(&args.dir)?, absolute(&args.places.data_dir)?);
    let path = dir.join(SETTINGS);
    refuse_again(&path)?;
    let identity_dir = dir.join("identity");
    let host = host_name();
    let target = JoinTarget {
        dir: &identity_dir,
        control_plane: &args.control_plane,
        roles: &[Role::ControlPlane],
        name: args.name.as_deref(),
        fallback_name: host.as_deref(),
    };
    let identity = joined(&target, &args.token).await.map_err(join_failure)?;
    let peer = identity.peer().to_string();
    let client = ControlClient::new(ClientConfig::new(args.control_plane.clone(), Some(identity)))?;
    let found = client.members().await?;
    let id = args.id.unwrap_or(found.next);
    let seeds: Vec<_> = found
        .members
        .iter()
        .map(|member| member.address.clone())
        .collect();
    let port = port_of(&args.address).map_err(Failure::usage)?;
    let text = settings(&[
        ("MOSEC_CLUSTER_ID", found.cluster_id.clone()),
        ("MOSEC_NODE_ID", id.to_string()),
        ("MOSEC_LISTEN", args.places.listen_on(port)),
        ("MOSEC_SEEDS", seeds.join(",")),
        ("MOSEC_DATA_DIR", text_of(&data_dir)?),
        ("MOSEC_IDENTITY", text_of(&identity_dir)?),
    ])?;
    write(&path, &text)?;
    let at = MemberAt {
        id,
        address: args.address,
    };
    Ok(terminal::print(&format!(
        "joined {} as {peer}, member {id}\n\
         start it with the settings in {path}:\n  \
         set -a; . {path}; exec mosec-control-plane\n\
         then, as an admin and from anywhere:\n  \
         mosectl cluster add {at}\n",
        found.cluster_id,
        path = path.display(),
    ))?)
}

/// Refuses to write over settings, which somebody may have changed.
fn refuse_again(path: &Path) -> Result {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        read => read.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let number = text.lines().find_map(|line| line.strip_prefix("MOSEC_NODE_ID="));
    let error = anyhow::anyhow!(
        "{} is there already; member {} is started with it",
        path.display(),
        number.unwrap_or("?")
    );
    Err(Failure::from(error).hint("remove it to begin anew"))
}

/// Settings are read in another folder than this one.
fn absolute(path: &Path) -> Result<PathBuf> {
    Ok(std::path::absolute(path).with_context(|| format!("cannot tell where {} is", path.display()))?)
}

fn write(path: &Path, text: &str) -> Result {
    Ok(fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Init,
    }

    #[test]
    fn nothing_is_written_where_something_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("prod");
        let made = |name: &str, more: &[&str]| {
            let line = ["init", "--members", "a:1", "--name", name, "--dir"];
            let line = line
                .into_iter()
                .chain([dir.to_str().unwrap()])
                .chain(more.iter().copied());
            init(&Line::try_parse_from(line).unwrap().args)
        };
        let long = "x".repeat(65);
        for bad in ["Prod X", "", long.as_str()] {
            let text = made(bad, &[]).unwrap_err().to_string();
            assert!(text.starts_with("--name: expected 1 to 64 bytes"), "{text}");
        }
        let text = made("prod", &["--data-dir", "/my data"]).unwrap_err().to_string();
        assert!(text.starts_with("MOSEC_DATA_DIR: expected no spaces"), "{text}");
        assert!(!dir.exists());
        made("prod", &["--data-dir", "data"]).unwrap();
        let path = dir.join("control-1").join(SETTINGS);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("MOSEC_DATA_DIR=/"), "{text}");
        let text = refuse_again(&path).unwrap_err().to_string();
        assert!(text.contains("is there already; member 1 is started"), "{text}");
    }
}
