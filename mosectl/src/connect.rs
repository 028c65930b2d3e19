//! Finds the control plane: flags, then environment, then the context of a running `mosectl up`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use mosec_wire::control::{ClientConfig, ControlClient};
use mosec_wire::tls::Identity;

use crate::context::{Context, ContextDir, Found};
use crate::failure::{Exit, Failure, Result};

/// How long a call may take with all its tries: longer than an election, and not longer than a user waits.
const CALL_TIMEOUT: Duration = Duration::from_secs(6);

/// Which control plane. Without these, the one of a running `mosectl up`.
#[derive(Debug, clap::Args)]
pub(crate) struct Connection {
    /// Control-plane nodes, as host:port, separated by commas.
    #[arg(
        long,
        env = "MOSEC_CONTROL_PLANE",
        value_name = "HOST:PORT,..",
        value_delimiter = ','
    )]
    control_plane: Vec<String>,
    /// Folder with ca.pem, cert.pem and key.pem of an admin, deployer or viewer.
    #[arg(long, env = "MOSEC_IDENTITY", value_name = "DIR")]
    identity: Option<PathBuf>,
}

/// A control plane to talk to.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    control_plane: Vec<String>,
    identity: PathBuf,
    gateway: Option<String>,
}

/// A client and what else is known of the cluster.
pub(crate) struct Cluster {
    pub(crate) client: ControlClient,
    /// As `http://127.0.0.1:8000`; the control plane does not know its gateways.
    pub(crate) gateway: Option<String>,
}

/// Sets up a client. Connects upon its first call.
pub(crate) fn connect(args: &Connection) -> Result<Cluster> {
    let target = choose(args, || Ok(ContextDir::of_user().find()?))?;
    let identity = Identity::load(&target.identity)
        .with_context(|| format!("cannot load the identity in {}", target.identity.display()))?;
    let mut config = ClientConfig::new(target.control_plane, Some(identity));
    config.call_timeout = CALL_TIMEOUT;
    let client = ControlClient::new(config).map_err(|error| Failure::new(Exit::Usage, error))?;
    Ok(Cluster {
        client,
        gateway: target.gateway,
    })
}

fn choose(args: &Connection, find: impl FnOnce() -> Result<Found>) -> Result<Target> {
    match (&args.control_plane[..], &args.identity) {
        ([], None) => {}
        ([], Some(_)) => return Err(Failure::usage("--identity is given without --control-plane")),
        (_, None) => {
            let message = "--control-plane is given without --identity, the folder of a person's certificate";
            return Err(Failure::usage(message).hint("`mosectl ca issue --role admin` makes one"));
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
        let hint = "`mosectl up` starts one here; --control-plane and --identity, or MOSEC_CONTROL_PLANE and \
                    MOSEC_IDENTITY, name another";
        Err(Failure::new(Exit::Unreachable, anyhow!(message)).hint(hint))
    };
    match find()? {
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
        let target = choose(&args(&["a:1", "b:2"], Some("/op")), || {
            Ok(Found::Running(context()))
        })
        .unwrap();
        let expected = Target {
            control_plane: vec!["a:1".into(), "b:2".into()],
            identity: "/op".into(),
            gateway: None,
        };
        assert_eq!(target, expected);
        let target = choose(&args(&[], None), || Ok(Found::Running(context()))).unwrap();
        assert_eq!(target.identity, PathBuf::from("/up/operator"));
        assert_eq!(target.gateway.as_deref(), Some("http://127.0.0.1:8000"));
    }

    #[test]
    fn half_of_the_flags_is_a_usage_error() {
        for args in [args(&["a:1"], None), args(&[], Some("/op"))] {
            let failure = choose(&args, || panic!("the context must not matter")).unwrap_err();
            assert_eq!(failure.exit, Exit::Usage, "{failure}");
        }
    }

    #[test]
    fn without_anything_the_user_is_told_what_to_do() {
        for (found, words) in [
            (Found::Nothing, "no `mosectl up`"),
            (Found::Stale(context()), "(process 7) has gone"),
        ] {
            let failure = choose(&args(&[], None), || Ok(found)).unwrap_err();
            let text = failure.to_string();
            assert!(
                failure.exit == Exit::Unreachable && text.contains(words) && text.contains("hint: "),
                "{text}"
            );
        }
    }
}
