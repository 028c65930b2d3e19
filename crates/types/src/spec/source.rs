//! Where a pipeline's code is, and what it needs.

use serde::{Deserialize, Serialize};

use super::Problems;
use crate::BundleId;

/// Most lines of requirements, and most bytes of one: far beyond a frozen environment of a large service, and small
/// enough for the log.
pub const MAX_REQUIREMENTS: usize = 512;
pub const MAX_REQUIREMENT_BYTES: usize = 512;

/// Where the Python code of a pipeline is, and how a worker process loads it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PythonSource {
    /// Folder that workers run in; it comes first on `sys.path`. An absolute path on each node, or, with a bundle, the
    /// path inside it: empty for the bundle's own folder.
    pub dir: String,
    /// Script whose module the classes of module `__main__` belong to, relative to `dir`. As in
    /// `multiprocessing`, a worker runs it under another name, so its `if __name__ == "__main__"` part stays out.
    #[serde(default)]
    pub main: Option<String>,
    /// `sys.argv[1:]` of the workers.
    #[serde(default)]
    pub argv: Vec<String>,
    /// Interpreter; the node's own default where absent.
    #[serde(default)]
    pub python: Option<String>,
    /// The code, where it travels to the nodes by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<BundleId>,
    /// What the code needs beyond what the interpreter has: lines of a requirements file, which each node installs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requirements: Vec<String>,
}

impl PythonSource {
    pub(super) fn validate(&self, found: &mut Problems) {
        let dir = &self.dir;
        if self.bundle.is_some() {
            let inside = !dir.starts_with('/') && dir.split('/').all(|part| part != "..");
            found.check(inside, "source.dir", || {
                format!("expected a path inside the bundle, found {dir:?}")
            });
        } else {
            found.check(dir.starts_with('/'), "source.dir", || {
                format!("expected an absolute path, found {dir:?}")
            });
        }
        let lines = self.requirements.len();
        found.check(lines <= MAX_REQUIREMENTS, "source.requirements", || {
            format!("expected at most {MAX_REQUIREMENTS} lines, found {lines}")
        });
        for (index, line) in self.requirements.iter().enumerate() {
            if let Err(problem) = check_requirement(line) {
                found.check(false, &format!("source.requirements[{index}]"), || problem);
            }
        }
    }
}

/// Whether a line of a requirements file means the same on every node: it names no file beside it.
pub fn check_requirement(line: &str) -> Result<(), String> {
    let is_one_line = !line.trim().is_empty() && !line.chars().any(char::is_control);
    if !is_one_line || line.len() > MAX_REQUIREMENT_BYTES {
        return Err(format!(
            "expected one line of at most {MAX_REQUIREMENT_BYTES} bytes, found {line:?}"
        ));
    }
    let option = |short: &str, long: &str| {
        let line = line.trim_start();
        line.starts_with(long) || (line.starts_with(short) && !line.starts_with("--"))
    };
    let names_a_file = option("-r", "--requirement")
        || option("-c", "--constraint")
        || option("-e", "--editable")
        || line.trim_start().starts_with(['.', '/'])
        || line.contains("file:");
    if names_a_file {
        return Err(format!(
            "expected a package that an index has, as numpy>=2, found {line:?}, which names a file"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::spec;
    use super::*;

    #[test]
    fn a_bundles_folder_is_inside_it() {
        let with = |dir: &str| {
            let mut spec = spec();
            spec.source.bundle = Some(BundleId::from_digest([7; 32]));
            spec.source.dir = dir.into();
            spec.validate().map_err(|error| error.place)
        };
        for good in ["", "src", "src/service", "..hidden"] {
            assert_eq!(with(good), Ok(()), "{good}");
        }
        for bad in ["/srv/echo", "..", "src/../../x"] {
            assert_eq!(with(bad), Err("source.dir".into()), "{bad}");
        }
    }

    #[test]
    fn requirements_mean_the_same_everywhere() {
        for good in [
            "numpy",
            "torch>=2.5 ; python_version < '3.13'",
            "--extra-index-url=x",
            "--no-index",
            "a[b]==1 --hash=sha256:00",
        ] {
            assert_eq!(check_requirement(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            " ",
            "a\nb",
            "-r other.txt",
            "--requirement=x",
            "-e .",
            "-cx",
            "./x.whl",
            "/x.whl",
            "x @ file:///x",
        ] {
            assert!(check_requirement(bad).is_err(), "{bad:?} should be refused");
        }
        let mut spec = spec();
        spec.source.requirements = vec!["numpy".into(), "-e .".into()];
        assert_eq!(spec.validate().unwrap_err().place, "source.requirements[1]");
    }
}
