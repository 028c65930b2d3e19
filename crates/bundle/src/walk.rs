//! What of a folder goes into its bundle.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use ignore::{DirEntry, WalkBuilder};

use crate::pack::PackError;
use crate::{IGNORE_FILE, links};

/// The files of an identity, as `mosectl ca issue` writes them.
const IDENTITY: [&str; 3] = ["ca.pem", "cert.pem", "key.pem"];
/// The key of a cluster's authority, as `mosectl ca init` writes it.
const AUTHORITY_KEY: &str = "ca-key.pem";

/// One entry of a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    Folder,
    File { bytes: u64, executable: bool },
    Link { target: PathBuf },
}

/// The entries by their paths relative to `root`, which is their order in the archive as well.
///
/// Left out are what `.gitignore` and `.mosecignore` say; `.git`, Python's compiled files and virtual environments, which are of no
/// use elsewhere; and identities of a cluster, which must not get there. In a Git repository the rules of the folders above count too, as they do for Git.
pub(crate) fn entries(root: &Path) -> Result<BTreeMap<PathBuf, Entry>, PackError> {
    let kind = fs::metadata(root).map_err(|source| PackError::io(root, source))?;
    if !kind.is_dir() {
        return Err(PackError::NoFolder(root.to_owned()));
    }
    let in_git = root.ancestors().any(|folder| folder.join(".git").exists());
    let walk = WalkBuilder::new(root)
        .standard_filters(false)
        .git_ignore(true)
        .require_git(in_git)
        .parents(in_git)
        .add_custom_ignore_filename(IGNORE_FILE)
        .filter_entry(|entry| entry.depth() == 0 || !is_useless(entry))
        .build();
    let mut entries = BTreeMap::new();
    for entry in walk {
        let entry = entry.map_err(PackError::Walk)?;
        // A pattern that is not understood may be the one that keeps a secret out.
        if let Some(error) = entry.error() {
            return Err(PackError::Walk(error.clone()));
        }
        let path = entry.path().strip_prefix(root).unwrap_or(entry.path());
        if !path.as_os_str().is_empty() {
            entries.insert(path.to_owned(), read(&entry)?);
        }
    }
    let targets = entries.iter().filter_map(|(path, entry)| match entry {
        Entry::Link { target } => Some((path.clone(), target.clone())),
        _ => None,
    });
    links::check(&targets.collect())?;
    Ok(entries)
}

fn is_useless(entry: &DirEntry) -> bool {
    let name = entry.file_name();
    let is_folder = entry.file_type().is_some_and(|kind| kind.is_dir());
    match is_folder {
        true => {
            let has = |file: &str| entry.path().join(file).exists();
            let is_identity = IDENTITY.iter().all(|file| has(file)) || has(AUTHORITY_KEY);
            name == ".git" || name == "__pycache__" || has("pyvenv.cfg") || is_identity
        }
        // The folder `.git` of a work tree is a file.
        false => name == ".git" || Path::new(name).extension().is_some_and(|end| end == "pyc"),
    }
}

fn read(entry: &DirEntry) -> Result<Entry, PackError> {
    let path = entry.path();
    let io = |source| PackError::io(path, source);
    // Not what a link leads to.
    let found = fs::symlink_metadata(path).map_err(io)?;
    let kind = found.file_type();
    if kind.is_dir() {
        return Ok(Entry::Folder);
    }
    if kind.is_symlink() {
        let target = fs::read_link(path).map_err(io)?;
        return Ok(Entry::Link { target });
    }
    if kind.is_file() {
        return Ok(Entry::File {
            bytes: found.len(),
            executable: found.permissions().mode() & 0o100 != 0,
        });
    }
    let what = match () {
        () if kind.is_socket() => "a socket",
        () if kind.is_fifo() => "a pipe",
        () => "a device",
    };
    Err(PackError::Special {
        path: path.to_owned(),
        what,
    })
}
