//! Backups of the control plane: its state and the code that revisions name, as one file.
//!
//! The leader streams the file (`api/backup.rs`), `mosectl backup` checks and keeps it ([`mod@file`]), and `mosectl restore`
//! makes the data folders of a new control plane from it ([`mod@restore`]).

mod file;
mod living;
mod missing;
mod restore;
#[cfg(test)]
mod tests;

pub use file::{BackupError, Contents, check};
pub use living::{LivingError, refuse_living};
pub use missing::Missing;
pub use restore::{Checked, MARKER, Restore, RestoreError, restore};

pub(crate) use file::{Encoder, Header, Kind, MAX_WHY_BYTES};
