//! `mosectl restore`: a member's data folder from a backup.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use mosec_control_plane::backup::{self, Restore, RestoreError};
use mosec_control_plane::cli::parse_peer;
use mosec_wire::tls::Identity;

use crate::failure::{Failure, Result};
use crate::pipe::Input;
use crate::report::history::date;
use crate::terminal;

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Run it on the host of each member, from the same file, while all members are stopped. Start them when all folders are made.

Examples:
  mosectl restore monday.backup --data-dir /var/lib/mosec --cluster-id prod --identity /etc/mosec/identity --node-id 1
  mosectl restore monday.backup --data-dir /var/lib/mosec --cluster-id prod --identity /etc/mosec/identity --node-id 1 --new-members --peers 1=10.0.0.1:7400,2=10.0.0.2:7400,3=10.0.0.3:7400")]
pub(crate) struct Args {
    /// The backup. `-` is standard input.
    file: PathBuf,
    /// The member's data folder, empty or not there yet.
    #[arg(long, env = "MOSEC_DATA_DIR", value_name = "DIR")]
    data_dir: PathBuf,
    /// Name of the cluster, which must be the backup's.
    #[arg(long, env = "MOSEC_CLUSTER_ID", value_name = "ID")]
    cluster_id: String,
    /// Number of this member, another one on each host.
    #[arg(long, env = "MOSEC_NODE_ID", value_name = "N")]
    node_id: u64,
    /// All members, this one included, as 1=host:port,2=host:port,3=host:port, the same on each. Those of the backup where
    /// absent.
    #[arg(long, env = "MOSEC_PEERS", value_delimiter = ',', value_parser = parse_peer, value_name = "N=HOST:PORT,..")]
    peers: Vec<(u64, String)>,
    /// Takes --peers as the members although they are others, or elsewhere, than those of the backup.
    #[arg(long, requires = "peers")]
    new_members: bool,
    /// Which control plane from this file this is. Where one was restored before and is lost as well: 2, and so on, the
    /// same for all members, for numbers that are later than those that it gave away.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    round: u32,
    /// Folder with ca.pem, cert.pem and key.pem of a control-plane member or an admin: to ask whether a member lives.
    #[arg(
        long,
        env = "MOSEC_IDENTITY",
        value_name = "DIR",
        required_unless_present = "insecure"
    )]
    identity: Option<PathBuf>,
    /// The members use plain text.
    #[arg(long, env = "MOSEC_INSECURE", conflicts_with = "identity")]
    insecure: bool,
}

pub(crate) async fn run(args: Args) -> Result {
    let mut peers = BTreeMap::new();
    for (member, address) in args.peers {
        if peers.insert(member, address).is_some() {
            return Err(Failure::usage(format!(
                "--peers: expected each number once, found {member} twice"
            )));
        }
    }
    let identity = match &args.identity {
        Some(dir) => Some(
            Identity::load(dir).with_context(|| format!("cannot load the identity in {}", dir.display()))?,
        ),
        None => None,
    };
    let input = Input::open(args.file)?;
    let plan = Restore {
        backup: input.path().to_owned(),
        data_dir: args.data_dir,
        cluster_id: args.cluster_id,
        member: args.node_id,
        peers,
        new_members: args.new_members,
        round: args.round,
    };
    let checked = blocking({
        let plan = plan.clone();
        move || plan.check()
    })
    .await?;
    let id = checked.id;
    backup::refuse_living(&checked.members, &plan.cluster_id, id, identity.as_ref()).await?;
    let dir = plan.data_dir.clone();
    let contents = blocking(move || backup::restore(&plan)).await?;
    super::backup::warn_of(&contents);
    let (taken, member) = (date(contents.header.taken_at_unix_ms), args.node_id);
    let text = format!(
        "member {member} is restored in {} from the backup of {taken}; revisions go on after {}\n",
        dir.display(),
        id.index
    );
    Ok(terminal::print(&text)?)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RestoreError> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.map_err(|panicked| anyhow!("the restore did not end: {panicked}"))?;
    done.map_err(|error| {
        let hint = match error {
            RestoreError::OtherMembers { .. } => {
                "without --peers and MOSEC_PEERS (`env -u MOSEC_PEERS mosectl restore ...`) they are the backup's; \
                 --new-members takes those given"
            }
            RestoreError::NoMembers => "--peers names them all",
            error => return error.into(),
        };
        Failure::from(error).hint(hint)
    })
}
