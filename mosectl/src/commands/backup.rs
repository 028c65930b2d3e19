//! `mosectl backup`: the control plane's state and code as one file.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use mosec_control_plane::backup;
use mosec_wire::control::BackupStream;
use tempfile::NamedTempFile;

use super::status::Output;
use crate::connect::{Connection, connect};
use crate::failure::{Exit, Failure, Result};
use crate::pipe::{self, Input};
use crate::report::backup::{self as report, BackupReport};
use crate::terminal;

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  mosectl backup /backups/monday.backup
  mosectl backup - > monday.backup         from a container or over ssh
  mosectl backup --check /backups/monday.backup")]
pub(crate) struct Args {
    /// The file to make, which must not be there yet; with --check, the one to look at. `-` is standard output, or input.
    file: PathBuf,
    /// Look at a file instead: check every byte of it, and say what is in it. Asks no control plane.
    #[arg(long)]
    check: bool,
    /// Take a backup that lacks code which a revision runs on.
    #[arg(long)]
    allow_missing: bool,
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    connection: Connection,
}

pub(crate) async fn run(args: Args) -> Result {
    let Args {
        file,
        check,
        allow_missing,
        output,
        connection,
    } = args;
    if check {
        let input = Input::open(file)?;
        let contents = looked_at(input.path()).await?;
        terminal::print(&rendered(&contents, output)?)?;
        warn_of(&contents);
        return refuse(&contents, allow_missing);
    }
    let is_pipe = pipe::is_pipe(&file);
    if is_pipe {
        pipe::refuse_terminal()?;
    } else if file.exists() {
        return Err(Failure::usage(format!("{} is there already", file.display())));
    }
    let stream = connect(&connection)?.client.backup().await?;
    let contents = if is_pipe {
        let (made, contents) = fetched(stream, &std::env::temp_dir(), allow_missing).await?;
        pipe::write_out(made.path())?;
        terminal::print_error(&rendered(&contents, output)?);
        contents
    } else {
        let contents = keep(stream, &file, allow_missing).await?;
        terminal::print(&rendered(&contents, output)?)?;
        contents
    };
    warn_of(&contents);
    Ok(())
}

fn rendered(contents: &backup::Contents, output: Output) -> Result<String> {
    let report = BackupReport::from(contents);
    Ok(match output {
        Output::Table => report::render(&report),
        Output::Json => serde_json::to_string_pretty(&report).context("cannot write JSON")? + "\n",
    })
}

/// Writes what arrives to a file beside `path`, which takes the name when all of it is there and checked.
async fn keep(stream: BackupStream, path: &Path, allow_missing: bool) -> Result<backup::Contents> {
    let dir = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let failed = || format!("cannot write {}", path.display());
    let (file, contents) = fetched(stream, dir, allow_missing).await?;
    named(file, path).with_context(failed)?;
    // Without it, the name itself may be lost with the power.
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.with_context(failed)?;
    Ok(contents)
}

/// What arrives, in a file of this folder, checked.
async fn fetched(
    mut stream: BackupStream,
    dir: &Path,
    allow_missing: bool,
) -> Result<(NamedTempFile, backup::Contents)> {
    let failed = || format!("cannot write the backup in {}", dir.display());
    let mut file = tempfile::Builder::new()
        .prefix(".mosec-backup-")
        .tempfile_in(dir)
        .with_context(failed)?;
    while let Some(bytes) = stream.next().await? {
        file.write_all(&bytes).with_context(failed)?;
    }
    file.as_file().sync_all().with_context(failed)?;
    let contents = looked_at(file.path()).await?;
    refuse(&contents, allow_missing).inspect_err(|_| warn_of(&contents))?;
    Ok((file, contents))
}

/// Says on standard error what a backup lacks.
pub(super) fn warn_of(contents: &backup::Contents) {
    for missing in &contents.missing {
        terminal::print_error(&format!(
            "warning: {}\n",
            terminal::printable(&missing.to_string())
        ));
    }
}

/// Refuses a backup that lacks what a revision runs on.
fn refuse(contents: &backup::Contents, allow_missing: bool) -> Result {
    let missing = contents.missing.iter();
    match missing.filter(|missing| !missing.needed_by.is_empty()).count() {
        0 => Ok(()),
        _ if allow_missing => Ok(()),
        count => {
            let error = anyhow!("the backup lacks {count} of the bundles that revisions run on");
            let hint = "deploy these again for a whole one, or take it as it is with --allow-missing";
            Err(Failure::new(Exit::Failed, error).hint(hint))
        }
    }
}

fn named(file: NamedTempFile, path: &Path) -> anyhow::Result<()> {
    file.persist_noclobber(path)?;
    Ok(())
}

async fn looked_at(path: &Path) -> Result<backup::Contents> {
    let path = path.to_owned();
    let checked = tokio::task::spawn_blocking(move || backup::check(&path)).await;
    Ok(checked.map_err(|panicked| anyhow!("the check did not end: {panicked}"))??)
}
