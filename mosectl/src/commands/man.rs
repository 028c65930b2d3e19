//! `mosectl man`: pages for `man`.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::CommandFactory;

use crate::failure::Result;
use crate::terminal;

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  mosectl man --dir /usr/local/share/man/man1
  mosectl man --dir ~/.local/share/man/man1   then `man mosectl-deploy` finds it")]
pub(crate) struct Args {
    /// Folder for the pages, one for each command. Made if it is not there.
    #[arg(long)]
    dir: PathBuf,
}

pub(crate) fn run<C: CommandFactory>(args: &Args) -> Result {
    let dir = args.dir.display();
    std::fs::create_dir_all(&args.dir).with_context(|| format!("cannot make the folder {dir}"))?;
    let command = C::command().disable_help_subcommand(true);
    clap_mangen::generate_to(command, &args.dir).with_context(|| format!("cannot write to {dir}"))?;
    Ok(terminal::print(&format!("man pages are in {dir}\n"))?)
}
