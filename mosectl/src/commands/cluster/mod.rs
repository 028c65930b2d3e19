//! `mosectl cluster`: the control plane's own members.

mod found;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::anyhow;
use mosec_control_plane::cli::parse_peer;
use mosec_wire::control::{ControlError, proto};
use tokio::time::{Instant, sleep};

use super::deploy::parse_timeout;
use super::status::Output;
use crate::connect::{Connection, connect, connect_to_change};
use crate::failure::{Failure, Result};
use crate::report::members::{self, MembersReport};
use crate::terminal::{self, Progress};
use crate::watch::{self, Watch};

/// How often the next step of a change is asked for.
const LOOK: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Makes what the members of a new cluster are started with: authority, identities and settings. Reaches nobody.
    Init(found::Init),
    /// Gets an identity for another member and writes what it is started with. Run on its host.
    Join(found::Join),
    /// Shows the members, each asked where it stands.
    Status(Status),
    /// Makes a member of a process that was started with --seeds, and waits until it votes.
    Add(Add),
    /// Takes a member out for good, one that is lost or one that runs.
    Remove(Remove),
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  mosectl cluster status
  mosectl cluster status --watch           as members come and go")]
struct Status {
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    watch: Watch,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  mosectl cluster add 4=10.0.0.4:7400

It may be interrupted and run again: it goes on where it was.")]
struct Add {
    /// The member's number and address, as 4=10.0.0.4:7400.
    member: MemberAt,
    /// How long it may take until the member has everything and votes.
    #[arg(long, default_value = "10m", value_parser = parse_timeout)]
    timeout: Duration,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  mosectl cluster remove 2                 one that is lost, or that is to be stopped")]
struct Remove {
    /// The member's number.
    member: u64,
    /// How long to wait where another change is under way.
    #[arg(long, default_value = "1m", value_parser = parse_timeout)]
    timeout: Duration,
    #[command(flatten)]
    connection: Connection,
}

/// A member's number and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct MemberAt {
    id: u64,
    address: String,
}

impl FromStr for MemberAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (id, address) = parse_peer(text)?;
        Ok(Self { id, address })
    }
}

impl fmt::Display for MemberAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.id, self.address)
    }
}

pub(crate) async fn run(args: Args) -> Result {
    match args.command {
        Command::Init(args) => found::init(&args),
        Command::Join(args) => found::join(args).await,
        Command::Status(args) => status(args).await,
        Command::Add(args) => add(args).await,
        Command::Remove(args) => remove(args).await,
    }
}

async fn status(args: Status) -> Result {
    let cluster = connect(&args.connection)?;
    let look = || async { Ok(MembersReport::from(cluster.client.members().await?)) };
    watch::show(args.watch, args.output, look, members::render).await
}

async fn add(args: Add) -> Result {
    let cluster = connect_to_change(&args.connection)?;
    let MemberAt { id, address } = &args.member;
    let step = || cluster.client.add_member(*id, address);
    let hint = async || {
        let mut hint = format!("`mosectl cluster add {}` goes on where it was", args.member);
        let found = cluster.client.members().await;
        if found.is_ok_and(|found| found.members.iter().any(|member| member.id == *id)) {
            hint += &format!("; `mosectl cluster remove {id}` takes it back");
        }
        hint
    };
    until_done(step, args.timeout, hint).await?;
    Ok(terminal::print(&format!("member {id} at {address} votes\n"))?)
}

async fn remove(args: Remove) -> Result {
    let cluster = connect_to_change(&args.connection)?;
    let id = args.member;
    let before = cluster.client.members().await?;
    if before.members.iter().all(|member| member.id != id) {
        let error = anyhow!("there is no member {id}");
        return Err(Failure::from(error).hint("`mosectl cluster status` lists the members"));
    }
    let step = || cluster.client.remove_member(id);
    let hint = async || "`mosectl cluster status` shows the members".to_owned();
    until_done(step, args.timeout, hint).await?;
    Ok(terminal::print(&format!(
        "member {id} is removed; if its process still runs, it ends by itself\n"
    ))?)
}

/// Asks for one step after the other. `hint` says what may be done when the time is over.
async fn until_done<F>(step: impl Fn() -> F, timeout: Duration, hint: impl AsyncFnOnce() -> String) -> Result
where
    F: Future<Output = Result<proto::MemberChange, ControlError>>,
{
    let mut progress = Progress::new();
    let deadline = Instant::now() + timeout;
    loop {
        let waits_for = match step().await {
            Ok(change) if change.done => {
                progress.end();
                return Ok(());
            }
            Ok(change) => change.waits_for,
            // A leader that changes, or goes with the member that is removed, is replaced soon.
            Err(ControlError::Unavailable { last, .. }) if Instant::now() < deadline => last,
            Err(error) => return Err(error.into()),
        };
        progress.show(&waits_for);
        if Instant::now() >= deadline {
            progress.end();
            let error = anyhow!("not done after {timeout:?}: {waits_for}");
            return Err(Failure::from(error).hint(hint().await));
        }
        sleep(LOOK).await;
    }
}

/// What a member is started with, as a file of `NAME=value` lines: for a service manager, for Docker, and for a shell.
fn settings(lines: &[(&str, String)]) -> Result<String> {
    let mut text = String::new();
    for (name, value) in lines {
        if value.contains(|c: char| c.is_whitespace() || "\"'$`\\#;&|<>()*?".contains(c)) {
            let message =
                format!("{name}: expected no spaces and nothing that a shell would change, found {value:?}");
            return Err(Failure::usage(message));
        }
        text += &format!("{name}={value}\n");
    }
    Ok(text)
}

/// A path as text.
fn text_of(path: &std::path::Path) -> Result<String> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| Failure::usage(format!("{}: expected UTF-8", path.display())))
}

/// Where a member's files are on its host.
#[derive(Debug, clap::Args)]
struct Places {
    /// Folder of the log and the snapshots on the member's host.
    #[arg(long, default_value = "/var/lib/mosec")]
    data_dir: PathBuf,
    /// IP address to listen on there. The port is the member's own.
    #[arg(long, default_value = "0.0.0.0")]
    listen: std::net::IpAddr,
}

impl Places {
    fn listen_on(&self, port: u16) -> String {
        std::net::SocketAddr::new(self.listen, port).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_numbers_with_addresses() {
        let at = "4=10.0.0.4:7400".parse::<MemberAt>().unwrap();
        assert_eq!((at.id, at.address.as_str()), (4, "10.0.0.4:7400"));
        assert_eq!(at.to_string(), "4=10.0.0.4:7400");
        for bad in ["4", "x=a:1", "4=a", "4=:1", "4=a:0", "4=a:b"] {
            assert!(bad.parse::<MemberAt>().is_err(), "{bad}");
        }
    }

    #[test]
    fn settings_mean_the_same_to_all_that_read_them() {
        let text = settings(&[
            ("MOSEC_NODE_ID", "1".into()),
            ("MOSEC_PEERS", "1=a:1,2=b:1".into()),
        ]);
        assert_eq!(text.unwrap(), "MOSEC_NODE_ID=1\nMOSEC_PEERS=1=a:1,2=b:1\n");
        let error = settings(&[("MOSEC_DATA_DIR", "/my data".into())]).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("MOSEC_DATA_DIR: expected no spaces"),
            "{error}"
        );
    }
}
