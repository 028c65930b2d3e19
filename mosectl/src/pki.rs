//! The certificates of a cluster in one process: an authority and one identity for each part, kept in its data folder.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use mosec_wire::tls::{ClusterCa, Identity, PeerIdentity, Role};

use crate::failure::Failure;

/// Identities are good for a year; those of a folder that has been in use for longer than this are made anew.
const RENEW_AFTER: Duration = Duration::from_secs(300 * 24 * 60 * 60);

/// The authority in `dir`, made if there is none.
pub(crate) fn authority(dir: &Path) -> anyhow::Result<ClusterCa> {
    if dir.exists() {
        return ClusterCa::load(dir)
            .with_context(|| format!("cannot load the authority in {}", dir.display()));
    }
    let ca = ClusterCa::create()?;
    ca.save(dir)?;
    Ok(ca)
}

/// The identity in `dir`, made if there is none that is good.
pub(crate) fn identity(ca: &ClusterCa, dir: &Path, role: Role, name: &str) -> anyhow::Result<Identity> {
    if let Ok(kept) = Identity::load(dir) {
        let fits = kept.role() == role && kept.name() == name && kept.ca_pem() == ca.ca_pem();
        if fits && is_young(&dir.join("cert.pem")) {
            return Ok(kept);
        }
    }
    let identity = ca.issue(role, name)?;
    identity
        .save(dir)
        .with_context(|| format!("cannot save the identity in {}", dir.display()))?;
    Ok(identity)
}

/// Refuses to write the identity of `wanted` over another one's: whoever has lost an admin's key needs the authority's.
pub(crate) fn refuse_other(dir: &Path, wanted: &PeerIdentity) -> Result<(), Failure> {
    match Identity::load(dir) {
        Ok(kept) if kept.peer() != wanted => {
            let error = anyhow::anyhow!("{} is {}'s, and not {wanted}'s", dir.display(), kept.peer());
            Err(Failure::from(error))
        }
        // One that cannot be used is no loss.
        _ => Ok(()),
    }
}

fn is_young(path: &Path) -> bool {
    let age = fs::metadata(path)
        .and_then(|found| found.modified())
        .map(|time| time.elapsed());
    matches!(age, Ok(Ok(age)) if age < RENEW_AFTER)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn another_ones_identity_is_not_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let ca = ClusterCa::create().unwrap();
        let (admin, ann) = (ca.issue(Role::Admin, "admin"), ca.issue(Role::Deployer, "ann"));
        let (admin, ann) = (admin.unwrap(), ann.unwrap());
        refuse_other(folder.path(), ann.peer()).unwrap();
        admin.save(folder.path()).unwrap();
        refuse_other(folder.path(), admin.peer()).unwrap();
        let text = refuse_other(folder.path(), ann.peer()).unwrap_err().to_string();
        assert!(
            text.ends_with(" is admin/admin's, and not deployer/ann's"),
            "{text}"
        );
    }

    #[test]
    fn identities_are_kept_until_they_are_old_or_do_not_fit() {
        let folder = tempfile::tempdir().unwrap();
        let (ca_dir, dir) = (folder.path().join("ca"), folder.path().join("agent"));
        let ca = authority(&ca_dir).unwrap();
        assert_eq!(authority(&ca_dir).unwrap().key_pem(), ca.key_pem());
        let first = identity(&ca, &dir, Role::Agent, "node-1").unwrap();
        assert_eq!(identity(&ca, &dir, Role::Agent, "node-1").unwrap(), first);
        let renamed = identity(&ca, &dir, Role::Agent, "node-2").unwrap();
        assert_eq!(renamed.name(), "node-2");
        let past = SystemTime::now() - RENEW_AFTER;
        fs::File::options()
            .write(true)
            .open(dir.join("cert.pem"))
            .unwrap()
            .set_modified(past)
            .unwrap();
        assert_ne!(identity(&ca, &dir, Role::Agent, "node-2").unwrap(), renamed);
        let other = ClusterCa::create().unwrap();
        assert_eq!(
            identity(&other, &dir, Role::Agent, "node-2").unwrap().ca_pem(),
            other.ca_pem()
        );
    }
}
