//! Finds the control plane: flags, then environment, then the context of a running `mosectl up`, then the login.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use clap::parser::ValueSource;
use clap::{ArgMatches, FromArgMatches};
use mosec_wire::control::{ClientConfig, ControlClient, parse_address};
use mosec_wire::tls::Identity;

use crate::context::{Context, ContextDir, Found};
use crate::failure::{Exit, Failure, Result};
use crate::login::LoginDir;
use crate::terminal;

/// How long a call may take with all its tries: longer than an election, and not longer than a user waits.
const CALL_TIMEOUT: Duration = Duration::from_secs(6);

/// Which control plane. Without these, the one of a running `mosectl up`, else that of `mosectl login`.
#[derive(Debug)]
pub(crate) struct Connection {
    flags: Flags,
    /// The addresses are those of the environment.
    is_exported: bool,
}

#[derive(Debug, clap::Args)]
struct Flags {
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

// By hand, as what is derived does not tell where a value came from.
impl FromArgMatches for Connection {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self {
            flags: Flags::from_arg_matches(matches)?,
            is_exported: matches.value_source("control_plane") == Some(ValueSource::EnvVariable),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::Args for Connection {
    fn augment_args(command: clap::Command) -> clap::Command {
        Flags::augment_args(command)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Flags::augment_args_for_update(command)
    }
}

/// A control plane to talk to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    control_plane: Vec<String>,
    identity: PathBuf,
    gateway: Option<String>,
    /// Which one it is, where another one might have been meant.
    choice: Option<String>,
}

/// A client and what else is known of the cluster.
pub(crate) struct Cluster {
    pub(crate) client: ControlClient,
    /// The certificate of the cluster's authority.
    pub(crate) ca_pem: String,
    /// As `http://127.0.0.1:8000`; the control plane does not know its gateways.
    pub(crate) gateway: Option<String>,
    choice: Option<String>,
}

/// As [`connect`], for a command that changes something: where nobody said which cluster and there are two, it says first
/// which one it takes.
pub(crate) fn connect_to_change(args: &Connection) -> Result<Cluster> {
    let cluster = connect(args)?;
    if let Some(choice) = &cluster.choice {
        terminal::print_error(&format!("{choice}\n"));
    }
    Ok(cluster)
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
        choice: target.choice,
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
        choice: None,
    }))
}

fn choose(
    Connection { flags, is_exported }: &Connection,
    find: impl FnOnce() -> Result<Found>,
    logged_in: impl FnOnce() -> Result<Option<Target>>,
) -> Result<Target> {
    match (&flags.control_plane[..], &flags.identity) {
        ([], None) => {}
        ([], Some(identity)) => {
            let Some(login) = logged_in()? else {
                let failure = Failure::usage("--identity is given without --control-plane");
                return Err(failure.hint(
                    "`--control-plane HOST:PORT,.. --identity DIR` names cluster and identity; the cluster of a `mosectl \
                     login` of this user need not be named",
                ));
            };
            let choice = not_up(("the login's", &login.control_plane), find);
            return Ok(Target {
                identity: identity.clone(),
                choice,
                ..login
            });
        }
        (_, None) => {
            let message = "--control-plane is given without --identity, the folder of a person's certificate";
            let hint = "`mosectl login --token` gets one";
            return Err(Failure::usage(message).hint(hint));
        }
        (addresses, Some(identity)) => {
            let control_plane = addresses.to_vec();
            // What was exported once is easily forgotten, a flag is not.
            let choice = is_exported
                .then(|| not_up(("MOSEC_CONTROL_PLANE's", &control_plane), find))
                .flatten();
            return Ok(Target {
                control_plane,
                identity: identity.clone(),
                gateway: None,
                choice,
            });
        }
    }
    let missing = |message: String| {
        let hint = "`mosectl up` starts one here; `mosectl login`, or --control-plane and --identity, or \
                    MOSEC_CONTROL_PLANE and MOSEC_IDENTITY, name another";
        Err(Failure::new(Exit::Unreachable, anyhow!(message)).hint(hint))
    };
    match find()? {
        Found::Running(Context {
            control_plane,
            identity,
            gateway,
            ..
        }) => {
            // A login that cannot be read is none that could have been meant.
            let other = logged_in().ok().flatten();
            let other = other.filter(|other| other.control_plane != control_plane);
            let choice = other.map(|other| {
                let taken = ("`mosectl up`'s", &control_plane[..]);
                between(taken, ("the login's", &other.control_plane))
            });
            Ok(Target {
                control_plane,
                identity,
                gateway: Some(gateway),
                choice,
            })
        }
        found => match (logged_in()?, found) {
            (Some(target), _) => Ok(target),
            (None, Found::Stale(Context { pid, .. })) => missing(format!(
                "no control plane is known: `mosectl up` (process {pid}) has gone"
            )),
            (None, _) => missing("no control plane is known: no `mosectl up` is running here".into()),
        },
    }
}

/// That it is this cluster and not that of `mosectl up`, where one runs here and is another.
fn not_up(taken: (&str, &[String]), find: impl FnOnce() -> Result<Found>) -> Option<String> {
    match find() {
        Ok(Found::Running(up)) if up.control_plane != taken.1 => {
            Some(between(taken, ("`mosectl up`'s", &up.control_plane)))
        }
        _ => None,
    }
}

/// That it is one cluster and not another, each with whose it is and where.
fn between(taken: (&str, &[String]), other: (&str, &[String])) -> String {
    let at = |(whose, addresses): (&str, &[String])| format!("{whose} at {}", addresses.join(","));
    format!(
        "cluster: {}, not {} (--control-plane and --identity name one)",
        at(taken),
        at(other)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(control_plane: &[&str], identity: Option<&str>) -> Connection {
        let control_plane = control_plane.iter().map(|&address| address.to_owned()).collect();
        let identity = identity.map(PathBuf::from);
        Connection {
            flags: Flags {
                control_plane,
                identity,
            },
            is_exported: false,
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
    fn a_flag_is_not_exported_even_where_it_says_the_same() {
        use clap::Args as _;
        // One that is there, whatever runs the test.
        let (name, value) = ("PATH", std::env::var("PATH").unwrap());
        let command = Connection::augment_args(clap::Command::new("x"));
        let command = command.mut_arg("control_plane", |arg| {
            arg.env(name).value_parser(clap::value_parser!(String))
        });
        let parsed = |line: &[&str]| {
            let matches = command.clone().try_get_matches_from(line).unwrap();
            Connection::from_arg_matches(&matches).unwrap()
        };
        let (exported, given) = (parsed(&["x"]), parsed(&["x", "--control-plane", &value]));
        assert_eq!(exported.flags.control_plane, given.flags.control_plane);
        assert!(exported.is_exported && !given.is_exported);
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
            choice: None,
        };
        assert_eq!(target, expected);
        let target = choose(&args(&[], None), running, || Ok(None)).unwrap();
        assert_eq!(target.choice, None, "there is one alone");
        assert_eq!(target.identity, PathBuf::from("/up/operator"));
        assert_eq!(target.gateway.as_deref(), Some("http://127.0.0.1:8000"));
    }

    #[test]
    fn the_login_counts_where_nothing_runs_here() {
        let login = Target {
            control_plane: vec!["a:1".into()],
            identity: "/home/me/.config/mosec/identity".into(),
            gateway: None,
            choice: None,
        };
        for found in [Found::Nothing, Found::Stale(context())] {
            let logged_in = || Ok(Some(login.clone()));
            let target = choose(&args(&[], None), || Ok(found), logged_in).unwrap();
            assert_eq!(target, login);
        }
    }

    #[test]
    fn an_identity_alone_is_for_the_cluster_of_the_login() {
        let logged_in = || {
            Ok(Some(Target {
                control_plane: vec!["a:1".into()],
                identity: "/identity".into(),
                gateway: None,
                choice: None,
            }))
        };
        let args = args(&[], Some("/identity.admin-boss"));
        let target = choose(&args, || Ok(Found::Nothing), logged_in).unwrap();
        assert_eq!(target.control_plane, ["a:1"]);
        assert_eq!(target.identity, PathBuf::from("/identity.admin-boss"));
        assert_eq!(target.choice, None);
        let target = choose(&args, || Ok(Found::Running(context())), logged_in).unwrap();
        assert_eq!(
            target.choice.as_deref(),
            Some(
                "cluster: the login's at a:1, not `mosectl up`'s at 127.0.0.1:1 (--control-plane and --identity name one)"
            )
        );
    }

    #[test]
    fn one_of_two_clusters_is_named() {
        let login = Target {
            control_plane: vec!["a:1".into(), "b:1".into()],
            identity: "/identity".into(),
            gateway: None,
            choice: None,
        };
        let running = || Ok(Found::Running(context()));
        let target = choose(&args(&[], None), running, || Ok(Some(login))).unwrap();
        assert_eq!(
            target.choice.as_deref(),
            Some(
                "cluster: `mosectl up`'s at 127.0.0.1:1, not the login's at a:1,b:1 (--control-plane and --identity name one)"
            )
        );
        let exported = Connection {
            is_exported: true,
            ..args(&["a:1"], Some("/op"))
        };
        let target = choose(&exported, running, || Ok(None)).unwrap();
        assert_eq!(
            target.choice.as_deref(),
            Some(
                "cluster: MOSEC_CONTROL_PLANE's at a:1, not `mosectl up`'s at 127.0.0.1:1 (--control-plane and --identity name one)"
            )
        );
        let none = || Ok(Found::Stale(context()));
        assert_eq!(choose(&exported, none, || Ok(None)).unwrap().choice, None);
        let broken = || Err(Failure::usage("not valid"));
        let target = choose(&args(&[], None), running, broken).unwrap();
        assert_eq!(
            target.choice, None,
            "a login that is not valid is in nobody's way"
        );
    }

    #[test]
    fn half_of_the_flags_is_a_usage_error() {
        for args in [args(&["a:1"], None), args(&[], Some("/op"))] {
            let failure = choose(&args, || panic!("the context must not matter"), || Ok(None)).unwrap_err();
            assert_eq!(failure.exit, Exit::Usage, "{failure}");
            assert!(failure.to_string().contains("hint: "), "{failure}");
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
