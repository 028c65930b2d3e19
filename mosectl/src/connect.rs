//! Finds the control plane: flags, then environment, then the context of a running `mosectl up`, then the login.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use mosec_control_plane::peers::port_of;
use mosec_wire::control::{ClientConfig, ControlClient};
use mosec_wire::tls::Identity;

use crate::context::{Context, ContextDir, Found};
use crate::failure::{Exit, Failure, Result};
use crate::login::LoginDir;

/// How long a call may take with all its tries: longer than an election, and not longer than a user waits.
const CALL_TIMEOUT: Duration = Duration::from_secs(6);

/// Which control plane. Without these, the one of a running `mosectl up`, else that of `mosectl login`.
#[derive(Debug, clap::Args)]
pub(crate) struct Connection {
    /// Control-plane nodes, as host:port, separated by commas.
    #[arg(
        long,
        env = "MOSEC_CONTROL_PLANE",
        value_name = "HOST:PORT,..",
        value_delimiter = ',',
        value_parser = parse_address
    )]
    control_plane: Vec<String>,
    /// Folder with ca.pem, cert.pem and key.pem of an admin, deployer or viewer.
    #[arg(long, env = "MOSEC_IDENTITY", value_name = "DIR")]
    identity: Option<PathBuf>,
}

/// An address that can be dialled: without its port nothing would answer, and nothing say why.
pub(crate) fn parse_address(text: &str) -> Result<String, String> {
    port_of(text).map_err(|_| "expected host:port, as 10.0.0.1:7400".to_owned())?;
    Ok(text.to_owned())
}

/// A control plane to talk to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    control_plane: Vec<String>,
    identity: PathBuf,
    gateway: Option<String>,
}

/// A client and what else is known of the cluster.
pub(crate) struct Cluster {
    pub(crate) client: ControlClient,
    /// The certificate of the cluster's authority.
    pub(crate) ca_pem: String,
    /// As `http://127.0.0.1:8000`; the control plane does not know its gateways.
    pub(crate) gateway: Option<String>,
}

/// Sets up a client. Connects upon its first call.
pub(crate) fn connect(args: &Connection) -> Result<Cluster> {
    let target = choose(args, || Ok(ContextDir::of_user().find()?), logged_in)?;
    let identity = Identity::load(&target.identity)
        .with_context(|| format!("cannot load the identity in {}", target.identity.display()))?;
    let ca_pem = identity.ca_pem().to_owned();
    let mut config = ClientConfig::new(target.control_plane, Some(identity));
    config.call_timeout = CALL_TIMEOUT;
    let client = ControlClient::new(config).map_err(|error| Failure::new(Exit::Usage, error))?;
    Ok(Cluster {
        client,
        ca_pem,
        gateway: target.gateway,
    })
}

/// What this user's last login left.
fn logged_in() -> Result<Option<Target>> {
    let Some(dir) = LoginDir::of_user() else {
        return Ok(None);
    };
    let login = dir.find()?;
    Ok(login.map(|login| Target {
        control_plane: login.control_plane,
        identity: dir.identity(),
        gateway: None,
    }))
}

fn choose(
    args: &Connection,
    find: impl FnOnce() -> Result<Found>,
    logged_in: impl FnOnce() -> Result<Option<Target>>,
) -> Result<Target> {
    match (&args.control_plane[..], &args.identity) {
        ([], None) => {}
        ([], Some(_)) => return Err(Failure::usage("--identity is given without --control-plane")),
        (_, None) => {
            let message = "--control-plane is given without --identity, the folder of a person's certificate";
            let hint = "`mosectl login --token` gets one";
            return Err(Failure::usage(message).hint(hint));
        }
        (addresses, Some(identity)) => {
            let control_plane = addresses.to_vec();
            return Ok(Target {
                control_plane,
                identity: identity.clone(),
                gateway: None,
            });
        }
    }
    let missing = |message: String| {
        let hint = "`mosectl up` starts one here; `mosectl login`, or --control-plane and --identity, or \
                    MOSEC_CONTROL_PLANE and MOSEC_IDENTITY, name another";
        Err(Failure::new(Exit::Unreachable, anyhow!(message)).hint(hint))
    };
    let found = find()?;
    if let Found::Stale(_) | Found::Nothing = &found
        && let Some(target) = logged_in()?
    {
        return Ok(target);
    }
    match found {
        Found::Running(Context {
            control_plane,
            identity,
            gateway,
            ..
        }) => Ok(Target {
            control_plane,
            identity,
            gateway: Some(gateway),
        }),
        Found::Stale(Context { pid, .. }) => missing(format!(
            "no control plane is known: `mosectl up` (process {pid}) has gone"
        )),
        Found::Nothing => missing("no control plane is known: no `mosectl up` is running here".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(control_plane: &[&str], identity: Option<&str>) -> Connection {
        let control_plane = control_plane.iter().map(|&address| address.to_owned()).collect();
        Connection {
            control_plane,
            identity: identity.map(PathBuf::from),
        }
    }

    fn context() -> Context {
        Context {
            control_plane: vec!["127.0.0.1:1".into()],
            identity: "/up/operator".into(),
            gateway: "http://127.0.0.1:8000".into(),
            pid: 7,
        }
    }

    #[test]
    fn flags_come_before_the_context() {
        let running = || Ok(Found::Running(context()));
        let never = || panic!("the login must not matter");
        let target = choose(&args(&["a:1", "b:2"], Some("/op")), running, never).unwrap();
        let expected = Target {
            control_plane: vec!["a:1".into(), "b:2".into()],
            identity: "/op".into(),
            gateway: None,
        };
        assert_eq!(target, expected);
        let target = choose(&args(&[], None), running, never).unwrap();
        assert_eq!(target.identity, PathBuf::from("/up/operator"));
        assert_eq!(target.gateway.as_deref(), Some("http://127.0.0.1:8000"));
    }

    #[test]
    fn the_login_counts_where_nothing_runs_here() {
        let login = Target {
            control_plane: vec!["a:1".into()],
            identity: "/home/me/.config/mosec/identity".into(),
            gateway: None,
        };
        for found in [Found::Nothing, Found::Stale(context())] {
            let logged_in = || Ok(Some(login.clone()));
            let target = choose(&args(&[], None), || Ok(found), logged_in).unwrap();
            assert_eq!(target, login);
        }
    }

    #[test]
    fn half_of_the_flags_is_a_usage_error() {
        for args in [args(&["a:1"], None), args(&[], Some("/op"))] {
            let failure = choose(&args, || panic!("the context must not matter"), || Ok(None)).unwrap_err();
            assert_eq!(failure.exit, Exit::Usage, "{failure}");
        }
    }

    #[test]
    fn without_anything_the_user_is_told_what_to_do() {
        for (found, words) in [
            (Found::Nothing, "no `mosectl up`"),
            (Found::Stale(context()), "(process 7) has gone"),
        ] {
            let failure = choose(&args(&[], None), || Ok(found), || Ok(None)).unwrap_err();
            let text = failure.to_string();
            assert!(
                failure.exit == Exit::Unreachable && text.contains(words) && text.contains("hint: "),
                "{text}"
            );
        }
    }
}
