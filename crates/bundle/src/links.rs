//! Where symbolic links of a bundle lead. Pure.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

/// Links followed on the way to one target: as many as Linux follows.
const MAX_HOPS: usize = 40;

/// A link that leads out of its folder, or nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the link {} leads out of the folder, to {}", link.display(), target.display())]
pub struct LeadsOut {
    pub link: PathBuf,
    pub target: PathBuf,
}

/// Checks that no link leads out of the folder, on its own or through others.
///
/// Both paths are relative: of the link to the folder, of its target as the link says. A target that is not there is
/// allowed, if it would be inside. Looking at the target's text alone would not do: with `a/up -> ..`, the target
/// `a/up/../x` of another link is outside.
pub(crate) fn check(links: &BTreeMap<PathBuf, PathBuf>) -> Result<(), LeadsOut> {
    for (link, target) in links {
        if !stays_inside(links, link) {
            return Err(LeadsOut {
                link: link.clone(),
                target: target.clone(),
            });
        }
    }
    Ok(())
}

/// Follows a path as the kernel would.
fn stays_inside(links: &BTreeMap<PathBuf, PathBuf>, path: &Path) -> bool {
    let mut at = PathBuf::new();
    let mut hops = 0;
    // What is still to be walked, the next component last.
    let mut open: Vec<&OsStr> = path.iter().rev().collect();
    while let Some(component) = open.pop() {
        match Path::new(component).components().next() {
            Some(Component::Normal(name)) => at.push(name),
            Some(Component::CurDir) | None => continue,
            Some(Component::ParentDir) if at.pop() => continue,
            Some(Component::ParentDir | Component::RootDir | Component::Prefix(_)) => return false,
        }
        if let Some(target) = links.get(&at) {
            hops += 1;
            if hops > MAX_HOPS {
                return false;
            }
            at.pop();
            open.extend(target.iter().rev());
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links(of: &[(&str, &str)]) -> BTreeMap<PathBuf, PathBuf> {
        of.iter()
            .map(|&(link, target)| (link.into(), target.into()))
            .collect()
    }

    #[test]
    fn links_may_lead_anywhere_inside() {
        for good in [
            &[("a", "b")][..],
            &[("deep/down/here", "../../top.txt")],
            &[("current", "versions/2"), ("versions/2", "1")],
            &[("dir", "."), ("x", "dir/dir/y")],
            &[("missing", "not/there")],
            &[("a/up", ".."), ("x", "a/up/b")],
        ] {
            assert_eq!(check(&links(good)), Ok(()), "{good:?}");
        }
    }

    #[test]
    fn links_that_lead_out_are_named() {
        for (bad, link) in [
            (&[("a", "/etc/passwd")][..], "a"),
            (&[("a", "..")], "a"),
            (&[("dir/a", "../../b")], "dir/a"),
            // Inside by its text, outside by what the first one does.
            (&[("a/up", ".."), ("x", "a/up/../secret")], "x"),
            (&[("one", "two"), ("two", "../out")], "one"),
            (&[("loop", "loop")], "loop"),
            (&[("l", "l/..")], "l"),
        ] {
            assert_eq!(check(&links(bad)).unwrap_err().link, Path::new(link), "{bad:?}");
        }
    }
}
