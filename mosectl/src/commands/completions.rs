//! `mosectl completions`: a script for the shell.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::failure::Result;
use crate::terminal;

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  mosectl completions bash > ~/.local/share/bash-completion/completions/mosectl
  mosectl completions zsh > ~/.zfunc/_mosectl
  mosectl completions fish > ~/.config/fish/completions/mosectl.fish")]
pub(crate) struct Args {
    /// Whose script it is to be.
    shell: Shell,
}

pub(crate) fn run<C: CommandFactory>(args: &Args) -> Result {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut C::command(), "mosectl", &mut script);
    Ok(terminal::print(&String::from_utf8_lossy(&script))?)
}
