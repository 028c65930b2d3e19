//! `-` in the place of a backup's file: standard input or output, by way of a temporary file, as a backup is read as a whole
//! before any of it is used.

use std::fs::File;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tempfile::NamedTempFile;

use crate::failure::{Failure, Result};

/// Whether this stands for standard input or output. A file of that name is `./-`.
pub(crate) fn is_pipe(path: &Path) -> bool {
    path == Path::new("-")
}

/// A file to read: the one that is named, or what standard input had.
#[derive(Debug)]
pub(crate) enum Input {
    Named(PathBuf),
    Copied(NamedTempFile),
}

impl Input {
    /// Blocks until all of standard input is there, where that is meant.
    pub(crate) fn open(path: PathBuf) -> Result<Self> {
        if !is_pipe(&path) {
            return Ok(Self::Named(path));
        }
        let mut input = io::stdin().lock();
        if input.is_terminal() {
            return Err(Failure::usage(
                "standard input is a terminal, and a backup is no text",
            ));
        }
        // Its name is what errors about its content begin with.
        let mut file = tempfile::Builder::new()
            .prefix("standard-input-")
            .tempfile()
            .context("cannot make a temporary file")?;
        let copied = io::copy(&mut input, &mut file);
        copied.with_context(|| format!("cannot copy standard input to {}", file.path().display()))?;
        Ok(Self::Copied(file))
    }

    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Named(path) => path,
            Self::Copied(file) => file.path(),
        }
    }
}

/// Refuses a terminal, which would take a backup for text.
pub(crate) fn refuse_terminal() -> Result {
    if io::stdout().is_terminal() {
        let message = "standard output is a terminal, and a backup is no text";
        return Err(Failure::usage(message).hint("`mosectl backup - > FILE` keeps it"));
    }
    Ok(())
}

/// Writes a file to standard output. Of a reader that leaves before the end nobody has the backup.
pub(crate) fn write_out(path: &Path) -> Result {
    let mut out = io::stdout().lock();
    let written = File::open(path).and_then(|mut file| io::copy(&mut file, &mut out));
    written
        .and_then(|_| out.flush())
        .context("cannot write the backup to standard output")?;
    Ok(())
}
