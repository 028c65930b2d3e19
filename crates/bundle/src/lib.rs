//! A service's folder as one file: packed where it is deployed from, unpacked on the nodes that run it.
//!
//! A bundle is a tar archive compressed with zstd. It holds regular files, folders and symbolic links that stay
//! inside, in the order of their paths, and of each file only its path, its content and whether it may be executed: owners, times
//! and the rest are the same in every archive, so the same content gives the same bundle.
//!
//! Its [id](mosec_types::BundleId) is the SHA-256 of the compressed bytes, not of the archive in them: whoever stores or passes a bundle
//! on can then check it without unpacking it, and nobody decompresses what was not checked. The price is that another
//! version of zstd may give another id for the same folder, which costs an upload.

mod links;
mod pack;
mod unpack;
mod walk;

pub use links::LeadsOut;
pub use pack::{PackError, Packed, pack};
pub use unpack::{UnpackError, unpack};

use mosec_types::BundleId;

/// Largest bundle where nobody says otherwise: code and small files; models are better fetched by the service.
pub const DEFAULT_MAX_BYTES: u64 = 64 << 20;
/// Largest bundle that can be allowed: whoever passes one on holds it in memory.
pub const MAX_BYTES: u64 = 1 << 30;
/// Most bytes that a bundle may unpack to: what a node's disk is asked for, however well the content compresses.
pub const MAX_UNPACKED_BYTES: u64 = 4 << 30;
/// Most files, folders and links of a bundle: far beyond any service, and a bound on what unpacking takes.
pub const MAX_ENTRIES: usize = 50_000;
/// The file beside `.gitignore` that names what stays out of a bundle.
pub const IGNORE_FILE: &str = ".mosecignore";

/// The id of a bundle with these bytes.
pub fn id_of(bytes: &[u8]) -> BundleId {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    let digest = digest.as_ref().try_into();
    BundleId::from_digest(digest.expect("a SHA-256 has 32 bytes"))
}
