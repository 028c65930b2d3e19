//! `mosectl schema`: the JSON Schema of manifests, for editors.

use crate::failure::Result;
use crate::manifest;
use crate::terminal;

pub(crate) fn run() -> Result {
    Ok(terminal::print(manifest::SCHEMA)?)
}
