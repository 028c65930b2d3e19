//! Packs a pipeline's code and sends it to the control plane.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bytes::Bytes;
use mosec_bundle::{PackError, Packed};
use mosec_types::PipelineSpec;

use crate::connect::Cluster;
use crate::failure::{Failure, Result};
use crate::terminal::print_error;

/// The folder that a script's code is in, and the script's path in it.
///
/// `source`: the folder where another one than the script's own is wanted.
pub(crate) fn folder_of(script: &Path, source: Option<&Path>) -> Result<(PathBuf, PathBuf)> {
    let whole = |path: &Path| {
        let found = path.canonicalize();
        found.with_context(|| format!("there is no folder {}", path.display()))
    };
    let name = script
        .file_name()
        .ok_or_else(|| Failure::usage(format!("{} is no script", script.display())))?;
    // The script itself may be a link; where it leads to is not where it is.
    let absolute = std::path::absolute(script)?;
    let own = whole(absolute.parent().unwrap_or(Path::new("/")))?;
    let folder = match source {
        Some(source) => whole(source)?,
        None => own.clone(),
    };
    let inside = own.strip_prefix(&folder).map(|path| path.join(name));
    let script = inside.map_err(|_| {
        let (script, folder) = (script.display(), folder.display());
        Failure::usage(format!(
            "{script} is not in {folder}, the folder that --source names"
        ))
    })?;
    Ok((folder, script))
}

/// Packs the folder that `spec` names, and names the bundle instead.
///
/// Blocks: nothing else is to be done meanwhile.
pub(crate) fn pack(spec: &mut PipelineSpec, max_bytes: u64) -> Result<Packed> {
    let folder = PathBuf::from(std::mem::take(&mut spec.source.dir));
    let packed = mosec_bundle::pack(&folder, max_bytes).map_err(|error| explain(&folder, error))?;
    print_error(&format!(
        "packed {} ({} files) as bundle {}, {}\n",
        folder.display(),
        packed.files,
        packed.id.short(),
        in_units(packed.bytes.len())
    ));
    spec.source.bundle = Some(packed.id);
    spec.validate_for_cluster().context("the pipeline is not valid")?;
    Ok(packed)
}

/// Has a majority of the control plane store a bundle.
pub(crate) async fn put(cluster: &Cluster, packed: Packed) -> Result {
    let put = cluster
        .client
        .put_bundle(packed.id, Bytes::from(packed.bytes))
        .await;
    Ok(put.with_context(|| format!("cannot store bundle {}", packed.id.short()))?)
}

fn explain(folder: &Path, error: PackError) -> Failure {
    let is_too_large = matches!(error, PackError::TooLarge { .. } | PackError::TooMany { .. });
    let failure =
        Failure::from(anyhow::Error::from(error).context(format!("cannot pack {}", folder.display())));
    match is_too_large {
        true => {
            failure.hint("--max-bundle-size allows more; --no-bundle runs code that is on the nodes already")
        }
        false => failure.hint("--no-bundle runs code that is on the nodes already"),
    }
}

fn in_units(bytes: usize) -> String {
    match bytes {
        0..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_scripts_folder_is_its_own_or_one_around_it() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let service = root.join("services/ocr");
        fs::create_dir_all(&service).unwrap();
        let script = service.join("server.py");
        let found = folder_of(&script, None).unwrap();
        assert_eq!(found, (service.clone(), "server.py".into()));
        let found = folder_of(&script, Some(&root)).unwrap();
        assert_eq!(found, (root.clone(), "services/ocr/server.py".into()));
        let elsewhere = folder_of(&root.join("server.py"), Some(&service))
            .unwrap_err()
            .to_string();
        assert!(elsewhere.contains("is not in "), "{elsewhere}");
        let missing = folder_of(&root.join("no/server.py"), None)
            .unwrap_err()
            .to_string();
        assert!(missing.contains("there is no folder"), "{missing}");
    }
}
