//! `mosectl login`: a person's identity, for a token.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use mosec_wire::control::{ClientConfig, ControlClient, JoinError, JoinTarget, parse_address};
use mosec_wire::tls::{Identity, LiveIdentity, Role};

use crate::failure::{Failure, Result};
use crate::login::{Login, LoginDir, join_failure, joined};
use crate::pki;
use crate::terminal::{self, Progress};

/// What people can be.
const PEOPLE: &[Role] = &[Role::Admin, Role::Deployer, Role::Viewer];

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  mosectl login --token mosec1_... --control-plane 10.0.0.1:7400,10.0.0.2:7400
  mosectl login --renew                    before the certificate expires")]
pub(crate) struct Args {
    /// The token, or @ and a file with it, from `mosectl token create` of an admin.
    #[arg(
        long,
        env = "MOSEC_JOIN_TOKEN",
        hide_env_values = true,
        required_unless_present = "renew"
    )]
    token: Option<String>,
    /// Control-plane nodes, as host:port, separated by commas.
    #[arg(
        long,
        env = "MOSEC_CONTROL_PLANE",
        value_name = "HOST:PORT,..",
        value_delimiter = ',',
        value_parser = parse_address
    )]
    control_plane: Vec<String>,
    /// Name to appear under in the audit trail. The token's own where absent, else the user's.
    #[arg(long)]
    name: Option<String>,
    /// Folder for the identity. Where absent, one that other mosectl calls of this user find by themselves.
    #[arg(long, env = "MOSEC_IDENTITY", value_name = "DIR")]
    identity: Option<PathBuf>,
    /// Writes over the identity of another role or name that is in that folder.
    #[arg(long)]
    replace: bool,
    /// Has the identity that is there renewed.
    #[arg(long, conflicts_with_all = ["token", "replace"])]
    renew: bool,
}

pub(crate) async fn run(args: Args) -> Result {
    let user = LoginDir::of_user();
    let dir = match (&args.identity, &user) {
        (Some(dir), _) => dir.clone(),
        (None, Some(user)) => user.identity(),
        (None, None) => {
            return Err(Failure::usage("there is no home folder to keep the identity in")
                .hint("--identity names a folder"));
        }
    };
    let kept = match &user {
        Some(user) if args.control_plane.is_empty() => user.find()?,
        _ => None,
    };
    let control_plane = kept.map_or(args.control_plane, |login| login.control_plane);
    if control_plane.is_empty() {
        return Err(Failure::usage("--control-plane is missing: which cluster?"));
    }
    let identity = match &args.token {
        None => renewed(&dir, &control_plane).await?,
        Some(token) => {
            // Somebody who logs in wants this token's identity, not one from before; that stays until the new one is there.
            let user_name = std::env::var("USER").ok();
            let fresh = dir.with_extension("new");
            let target = JoinTarget {
                dir: &fresh,
                control_plane: &control_plane,
                roles: PEOPLE,
                name: args.name.as_deref(),
                fallback_name: user_name.as_deref(),
            };
            let begun = fresh.exists();
            let identity = joined(&target, token).await.map_err(|error| {
                // The key of a token that is no good is of no use. One that is out of reach may be: it is good again for it.
                let may_pass = matches!(error, JoinError::Unavailable { .. } | JoinError::Unsigned { .. });
                if !begun && !may_pass {
                    std::fs::remove_dir_all(&fresh).ok();
                }
                refused(error, token)
            })?;
            if !args.replace
                && let Err(failure) = pki::refuse_other(&dir, identity.peer())
            {
                // The token is used up, so what it has given is kept, where no later login takes it for its own.
                let peer = identity.peer();
                let kept = dir.with_file_name(format!("identity.{}-{}", peer.role, peer.name));
                pki::refuse_other(&kept, peer)?;
                identity.save(&kept)?;
                std::fs::remove_dir_all(&fresh)
                    .with_context(|| format!("cannot remove {}", fresh.display()))?;
                let (kept, addresses) = (kept.display(), control_plane.join(","));
                return Err(failure.hint(format!(
                    "{peer}'s identity is in {kept}: use it with --control-plane {addresses} --identity {kept}. A login into a folder of somebody \
                     else's needs --replace"
                )));
            }
            identity.save(&dir)?;
            std::fs::remove_dir_all(&fresh).with_context(|| format!("cannot remove {}", fresh.display()))?;
            identity
        }
    };
    if let (None, Some(user)) = (&args.identity, &user) {
        user.keep(&Login { control_plane })?;
    }
    let peer = identity.peer();
    Ok(terminal::print(&format!(
        "logged in as {peer}, kept in {}\n",
        dir.display()
    ))?)
}

/// Why the token has led to no identity.
fn refused(error: JoinError, token: &str) -> Failure {
    let is_file = !token.starts_with('@') && Path::new(token).is_file();
    let failure = join_failure(error);
    match is_file {
        true => failure.hint(format!("{token} is a file: --token @{token} reads it")),
        false => failure,
    }
}

async fn renewed(dir: &Path, control_plane: &[String]) -> Result<Identity> {
    let identity = Identity::load(dir)
        .with_context(|| format!("cannot load the identity in {}", dir.display()))
        .map_err(|error| Failure::from(error).hint("--token gets one"))?;
    let live = LiveIdentity::from(identity);
    let client = ControlClient::new(ClientConfig::live(control_plane.to_vec(), Some(live.clone())))?;
    let mut progress = Progress::new();
    progress.show(&format!("asking {} for a certificate", control_plane.join(", ")));
    client.renew_now(&live, dir).await?;
    Ok((*live.current()).clone())
}
