//! Files with secrets: never readable by others, never half-written.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rand::Rng as _;

use super::TlsError;
use super::hex::{from_hex, to_hex};

/// Mode of a private key's file.
pub(super) const SECRET: u32 = 0o600;
/// Mode of a certificate's file.
pub(super) const PUBLIC: u32 = 0o644;

pub(super) fn read(path: &Path) -> Result<String, TlsError> {
    fs::read_to_string(path).map_err(|source| TlsError::File {
        path: path.to_owned(),
        source,
    })
}

pub(super) fn create_dir(dir: &Path) -> Result<(), TlsError> {
    fs::create_dir_all(dir).map_err(|source| TlsError::File {
        path: dir.to_owned(),
        source,
    })
}

/// Writes a file that appears whole or not at all, in a directory that exists. Replaces an older one.
pub(super) fn write(path: &Path, mode: u32, text: &str) -> Result<(), TlsError> {
    replace(path, mode, text).map_err(|source| TlsError::File {
        path: path.to_owned(),
        source,
    })
}

/// A secret that is kept in the file at `path`, drawn at random if there is none.
pub fn kept_secret(path: &Path) -> Result<[u8; 32], TlsError> {
    if path.exists() {
        let kept = from_hex(read(path)?.trim()).and_then(|bytes| bytes.try_into().ok());
        return kept.ok_or_else(|| {
            let found = format!("{} is not 64 hexadecimal digits", path.display());
            TlsError::unusable("secret", found)
        });
    }
    let secret: [u8; 32] = rand::rng().random();
    write(path, SECRET, &to_hex(&secret))?;
    Ok(secret)
}

/// Gives a file its name for good, in place of an older one.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), TlsError> {
    let moved = fs::rename(from, to).and_then(|()| sync_dir_of(to));
    moved.map_err(|source| TlsError::File {
        path: to.to_owned(),
        source,
    })
}

fn replace(path: &Path, mode: u32, text: &str) -> io::Result<()> {
    let temporary = path.with_extension("pem.tmp");
    // What an interrupted write left there may have another mode, which opening would keep.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_dir_of(path)
}

fn sync_dir_of(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => File::open(dir)?.sync_all(),
        _ => Ok(()),
    }
}
