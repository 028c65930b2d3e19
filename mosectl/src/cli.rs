//! The `mosectl` command: arguments, and the exit codes of `docs/mosectl.md`.

use std::ffi::OsString;

use clap::{ColorChoice, Parser, Subcommand};

use crate::commands::{
    audit, backup, ca, cluster, completions, delete, deploy, describe, explain, health, history, login, logs,
    man, node, plan, restore, rollback, rollout, scale, schema, status, token, traffic, up,
};
use crate::failure::Result;
use crate::terminal;

/// Runs, fills and looks into a model-serving cluster.
#[derive(Debug, Parser)]
#[command(name = "mosectl", version)]
#[command(
    after_help = "Exit codes: 0 ok, 1 failed, 2 wrong usage, 3 no control plane is known or answers, 130 interrupted."
)]
struct Args {
    /// When to use colours. `auto`: on a terminal, unless NO_COLOR is set.
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN")]
    color: ColorChoice,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a whole cluster in this process: control plane, gateway and agents.
    Up(up::Args),
    /// Deploys a MOSEC script or a manifest and waits until it serves.
    Deploy(deploy::Args),
    /// Shows what a deployment would change, without one.
    Plan(plan::Args),
    /// Follows, promotes or ends the update of a pipeline.
    Rollout(rollout::Args),
    /// Changes how many replicas the stages of a pipeline have.
    Scale(scale::Args),
    /// Changes the share of a canary.
    Traffic(traffic::Args),
    /// Lists nodes, and takes them out of service.
    Node(node::Args),
    /// Goes back to an earlier revision at once and waits until it serves.
    Rollback(rollback::Args),
    /// Lists what was deployed of a pipeline, by whom, and what became of it.
    #[command(after_long_help = "\
Examples:
  mosectl history ocr")]
    History(history::Args),
    /// Shows pipelines, replicas, nodes and the control plane.
    Status(status::Args),
    /// Shows everything about one pipeline or node.
    Describe(describe::Args),
    /// Shows what the workers of a pipeline write, and how they ended.
    Logs(logs::Args),
    /// Removes a pipeline.
    Delete(delete::Args),
    /// Lists who changed what, and when.
    Audit(audit::Args),
    /// Makes, lists and ends the tokens with which processes and people join.
    Token(token::Args),
    /// Keeps the control plane's state and code in a file, or looks into one.
    Backup(backup::Args),
    /// Makes a member's data folder from a backup, on its host, while the control plane is stopped.
    Restore(restore::Args),
    /// Gets this user's identity for a token.
    Login(login::Args),
    /// Founds a cluster, and shows, adds and removes members of its control plane.
    Cluster(cluster::Args),
    /// Makes the cluster's authority and issues its certificates.
    Ca(ca::Args),
    /// Says what an error of a request means, and what helps.
    Explain(explain::Args),
    /// Asks one process whether it works, for health checks of containers and services.
    Health(health::Args),
    /// Prints the JSON Schema of manifests, for editors.
    Schema,
    /// Writes man pages.
    Man(man::Args),
    /// Prints a completion script for a shell.
    Completions(completions::Args),
}

/// Runs the command with these arguments, the program's name first; its exit code.
pub fn main(args: impl IntoIterator<Item = OsString>) -> u8 {
    let args: Args = match mosec_telemetry::parse_args(args) {
        Ok(args) => args,
        Err(code) => return code,
    };
    terminal::set_colours(args.color);
    match run(args.command) {
        Ok(()) => 0,
        Err(failure) => failure.report(),
    }
}

fn run(command: Command) -> Result {
    match command {
        Command::Up(args) => up::run(args),
        Command::Deploy(args) => block_on(deploy::run(args)),
        Command::Plan(args) => block_on(plan::run(args)),
        Command::Rollout(args) => block_on(rollout::run(args)),
        Command::Scale(args) => block_on(scale::run(args)),
        Command::Traffic(args) => block_on(traffic::run(args)),
        Command::Node(args) => block_on(node::run(args)),
        Command::Rollback(args) => block_on(rollback::run(args)),
        Command::History(args) => block_on(history::run(args)),
        Command::Status(args) => block_on(status::run(args)),
        Command::Describe(args) => block_on(describe::run(args)),
        Command::Logs(args) => block_on(logs::run(args)),
        Command::Delete(args) => block_on(delete::run(args)),
        Command::Audit(args) => block_on(audit::run(args)),
        Command::Token(args) => block_on(token::run(args)),
        Command::Backup(args) => block_on(backup::run(args)),
        Command::Restore(args) => block_on(restore::run(args)),
        Command::Login(args) => block_on(login::run(args)),
        Command::Cluster(args) => block_on(cluster::run(args)),
        Command::Ca(args) => ca::run(args),
        Command::Explain(args) => explain::run(args),
        Command::Health(args) => block_on(health::run(args)),
        Command::Schema => schema::run(),
        Command::Man(args) => man::run::<Args>(&args),
        Command::Completions(args) => completions::run::<Args>(&args),
    }
}

/// For the commands that make a few calls: one thread does.
fn block_on(command: impl Future<Output = Result>) -> Result {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(command)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Args::command().debug_assert();
    }

    /// Each command with the words that lead to it.
    fn commands(command: &clap::Command, path: &str, found: &mut Vec<(String, clap::Command)>) {
        for command in command.get_subcommands() {
            let path = format!("{path} {}", command.get_name());
            commands(command, &path, found);
            found.push((path, command.clone()));
        }
    }

    fn all() -> Vec<(String, clap::Command)> {
        let mut found = Vec::new();
        commands(&Args::command(), "mosectl", &mut found);
        found
    }

    /// What an example's line runs: up to a pipe, a redirection, or the words that explain it.
    fn typed(line: &str) -> Vec<OsString> {
        let end = ["  ", " | ", " > "].iter().filter_map(|end| line.find(end)).min();
        let line = &line[..end.unwrap_or(line.len())];
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn each_command_says_what_it_is_for_and_shows_how_it_is_typed() {
        // What they take says it all, and each of a group's commands has examples of its own.
        let plain = ["mosectl schema", "mosectl token list", "mosectl token revoke"];
        for (path, command) in all() {
            assert!(command.get_about().is_some(), "{path}");
            // The possible values of `--output` say what it does.
            for argument in command
                .get_arguments()
                .filter(|argument| argument.get_id() != "output")
            {
                assert!(argument.get_help().is_some(), "{path}: {}", argument.get_id());
            }
            let is_group = command.has_subcommands() && command.is_subcommand_required_set();
            let help = command
                .get_after_long_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            let examples: Vec<_> = help
                .lines()
                .filter_map(|line| line.strip_prefix("  mosectl "))
                .collect();
            assert_eq!(
                examples.is_empty(),
                is_group || plain.contains(&path.as_str()),
                "{path}: {help}"
            );
            for example in examples {
                let line = format!("mosectl {example}");
                assert!(line.starts_with(path.as_str()), "{path}: {line}");
                let parsed = Args::try_parse_from(typed(&line));
                assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
            }
        }
    }

    #[test]
    fn each_command_has_a_man_page_without_a_warning() {
        let dir = tempfile::tempdir().unwrap();
        let man = Args::try_parse_from(["mosectl", "man", "--dir", &dir.path().to_string_lossy()]).unwrap();
        run(man.command).unwrap();
        let groff = || std::process::Command::new("groff");
        let has_groff = groff()
            .arg("--version")
            .output()
            .is_ok_and(|output| output.status.success());
        for path in all().into_iter().map(|(path, _)| path).chain(["mosectl".into()]) {
            let page = dir.path().join(format!("{}.1", path.replace(' ', "-")));
            let text =
                std::fs::read_to_string(&page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
            for section in [".TH ", ".SH NAME", ".SH SYNOPSIS"] {
                assert!(text.contains(section), "{path} has no {section}");
            }
            if has_groff {
                let checked = groff()
                    .args(["-man", "-ww", "-z", "-Tutf8"])
                    .arg(&page)
                    .output()
                    .unwrap();
                assert_eq!(String::from_utf8_lossy(&checked.stderr), "", "{path}");
            }
        }
    }

    #[test]
    fn script_arguments_come_after_two_dashes() {
        let parse = |line: &str| Args::try_parse_from(line.split(' ').map(OsString::from));
        assert!(parse("mosectl deploy server.py --name ocr -- --port 1 -x").is_ok());
        assert!(parse("mosectl deploy server.py --port 1").is_err());
        assert!(parse("mosectl deploy server.py --name Big").is_err());
        assert!(parse("mosectl up --agents 0").is_err());
        assert!(parse("mosectl token create --role agent --ttl 2h --uses 8").is_ok());
        assert!(parse("mosectl token create --role agent --ttl 30d").is_ok());
        assert!(parse("mosectl token create --role king").is_err());
        assert!(parse("mosectl token create --role agent --ttl 0s").is_err());
        assert!(parse("mosectl login").is_err());
        assert!(parse("mosectl login --renew").is_ok());
        assert!(parse("mosectl ca issue --dir a --role king --name b --out c").is_err());
    }
}
