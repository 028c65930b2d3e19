//! `mosectl ca`: the cluster's authority and the identities it issues.

use std::path::PathBuf;

use clap::Subcommand;
use mosec_wire::tls::{ClusterCa, Role};

use crate::failure::{Failure, Result};
use crate::pki;
use crate::terminal;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Makes a new authority: ca.pem, which every process trusts, and ca-key.pem, which signs. Keep the key safe.
    #[command(after_long_help = "\
Examples:
  mosectl ca init --dir ca")]
    Init {
        /// Folder of the authority.
        #[arg(long)]
        dir: PathBuf,
    },
    /// Issues a certificate: ca.pem, cert.pem and key.pem for one process.
    #[command(after_long_help = "\
Examples:
  mosectl ca issue --dir ca --role agent --name gpu-3 --out identities/gpu-3")]
    Issue {
        /// Folder of the authority.
        #[arg(long)]
        dir: PathBuf,
        /// gateway, agent or control-plane for a process; admin, deployer or viewer for a person.
        #[arg(long, value_parser = |text: &str| text.parse::<Role>())]
        role: Role,
        /// Name of its owner, unique in its role; the node's name for an agent.
        #[arg(long)]
        name: String,
        /// Folder to write into.
        #[arg(long)]
        out: PathBuf,
        /// Writes over the identity of another role or name that is in that folder.
        #[arg(long)]
        replace: bool,
    },
}

pub(crate) fn run(args: Args) -> Result {
    match args.action {
        Action::Init { dir } => {
            if ClusterCa::load(&dir).is_ok() {
                let message = anyhow::anyhow!("{} has an authority already", dir.display());
                return Err(Failure::from(message)
                    .hint("a new one would cut off every process that has its identity from the old one"));
            }
            ClusterCa::create()?.save(&dir)?;
            terminal::print(&format!("made an authority in {}\n", dir.display()))?;
        }
        Action::Issue {
            dir,
            role,
            name,
            out,
            replace,
        } => {
            let ca = ClusterCa::load(&dir)
                .map_err(|error| Failure::from(error).hint("`mosectl ca init` makes an authority"))?;
            let identity = ca.issue(role, &name)?;
            if !replace {
                pki::refuse_other(&out, identity.peer())
                    .map_err(|error| error.hint("--out names another folder, or --replace"))?;
            }
            identity.save(&out)?;
            terminal::print(&format!("issued {} to {}\n", identity.peer(), out.display()))?;
        }
    }
    Ok(())
}
