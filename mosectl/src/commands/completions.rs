//! `mosectl completions`: a script for the shell.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::failure::Result;
use crate::terminal;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    shell: Shell,
}

pub(crate) fn run<C: CommandFactory>(args: &Args) -> Result {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut C::command(), "mosectl", &mut script);
    Ok(terminal::print(&String::from_utf8_lossy(&script))?)
}
