//! Looks into Python code with `python -m mosec.inspect`: a script's specification, the workers of a manifest.

use std::ffi::OsStr;
use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context as _;
use mosec_types::{PipelineName, PipelineSpec};
use serde::Deserialize;

use crate::failure::{Failure, Result};

/// Names of scripts that say nothing about the service; its folder's does.
const GENERIC: &[&str] = &["server", "serve", "main", "app", "service", "run", "__main__"];

/// What Python code is not, and what it should have been.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, thiserror::Error)]
pub(crate) struct CodeError {
    pub(crate) message: String,
    pub(crate) file: Option<String>,
    pub(crate) line: Option<u32>,
    pub(crate) expected: Option<String>,
}

impl fmt::Display for CodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, self.line) {
            (Some(file), Some(line)) => write!(f, "{file}:{line}: ")?,
            (Some(file), None) => write!(f, "{file}: ")?,
            (None, _) => {}
        }
        f.write_str(&self.message)?;
        match &self.expected {
            Some(expected) => write!(f, " (expected {expected})"),
            None => Ok(()),
        }
    }
}

/// One worker class as Python sees it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct WorkerFound {
    /// Content type of its answers; absent where it is wrong.
    pub(crate) mime: Option<String>,
    /// Whether it answers with a stream of events.
    #[serde(default)]
    pub(crate) streaming: bool,
    /// Request headers that it asks for.
    #[serde(default)]
    pub(crate) request_headers: Vec<String>,
    pub(crate) error: Option<CodeError>,
}

#[derive(Deserialize)]
struct Output {
    spec: Option<PipelineSpec>,
    workers: Option<Vec<WorkerFound>>,
    error: Option<CodeError>,
}

/// The specification of an unchanged MOSEC script, under the name that the script has given it.
///
/// `folder`: where it runs; here where absent.
pub(crate) fn inspect(
    python: &str,
    script: &Path,
    args: &[String],
    folder: Option<&Path>,
) -> Result<PipelineSpec> {
    let mut arguments = vec![script.as_os_str()];
    arguments.extend(args.iter().map(OsStr::new));
    let output = run(python, &arguments, folder)?;
    match (output.spec, output.error) {
        (Some(spec), None) => Ok(spec),
        (_, Some(error)) => Err(error.into()),
        (None, None) => Err(mismatch(python)),
    }
}

/// Looks for worker classes in `dir`; one answer for each, in order.
pub(crate) fn check(python: &str, dir: &Path, workers: &[String]) -> Result<Vec<WorkerFound>> {
    let mut arguments = vec![OsStr::new("--check")];
    arguments.extend(workers.iter().map(OsStr::new));
    arguments.extend([OsStr::new("--dir"), dir.as_os_str()]);
    let output = run(python, &arguments, None)?;
    match (output.workers, output.error) {
        (Some(found), None) if found.len() == workers.len() => Ok(found),
        (_, Some(error)) => Err(error.into()),
        _ => Err(mismatch(python)),
    }
}

fn run(python: &str, args: &[&OsStr], folder: Option<&Path>) -> Result<Output> {
    let mut command = Command::new(python);
    if let Some(folder) = folder {
        command.current_dir(folder);
    }
    // What the code prints goes to standard error; the result is alone on standard output.
    let output = command
        .args(["-m", "mosec.inspect"])
        .args(args)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start the Python interpreter {python:?}"))
        .map_err(|error| Failure::from(error).hint(PYTHON_HINT))?;
    if output.stdout.is_empty() {
        let status = output.status;
        let error = anyhow::anyhow!("`{python} -m mosec.inspect` gave no result ({status})");
        return Err(Failure::from(error).hint(PYTHON_HINT));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| Failure::from(error).hint(mismatch_text(python)))
}

const PYTHON_HINT: &str = "--python names the interpreter that has mosec-cluster and what the code imports";

fn mismatch(python: &str) -> Failure {
    Failure::from(anyhow::anyhow!(mismatch_text(python)))
}

fn mismatch_text(python: &str) -> String {
    format!("the mosec package of {python} does not fit this mosectl")
}

/// An interpreter as workers, which run in another folder, find it too: a bare name on the PATH, else an absolute path.
pub(crate) fn interpreter(python: &str) -> std::io::Result<String> {
    match python.contains('/') {
        true => Ok(std::path::absolute(python)?.to_string_lossy().into_owned()),
        false => Ok(python.to_owned()),
    }
}

/// [`interpreter`], where it can be started: what cannot would only show when the first workers do not start.
pub(crate) fn working_interpreter(python: &str) -> Result<String> {
    let path = interpreter(python)?;
    let explain = |error: anyhow::Error| {
        let error = error.context(format!("the Python interpreter {python:?} cannot be used"));
        Failure::from(error).hint(PYTHON_HINT)
    };
    // Without its packages, which may be slow to load and which a pipeline's own interpreter may have instead.
    let ran = Command::new(&path)
        .args(["-I", "-S", "-c", ""])
        .stdin(Stdio::null())
        .output();
    let ran = ran.map_err(|error| explain(error.into()))?;
    if !ran.status.success() {
        let said = String::from_utf8_lossy(&ran.stderr);
        let last = said.lines().last().unwrap_or("it says nothing");
        let problem = anyhow::anyhow!("it ends with {} when it is to run nothing: {last}", ran.status);
        return Err(explain(problem));
    }
    Ok(path)
}

/// A pipeline's name from its script: the file's, or the folder's where the file's says nothing.
///
/// `script`: absolute. `None` where no letter or digit is left.
pub(crate) fn name_of(script: &Path) -> Option<PipelineName> {
    let stem = script.file_stem()?.to_string_lossy();
    let folder = script
        .parent()
        .and_then(Path::file_name)
        .map(OsStr::to_string_lossy);
    let named = match folder {
        Some(folder) if GENERIC.contains(&stem.to_lowercase().as_str()) => valid_name(&folder),
        _ => None,
    };
    named.or_else(|| valid_name(&stem))
}

/// The nearest valid name.
fn valid_name(text: &str) -> Option<PipelineName> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    let name: String = text
        .to_lowercase()
        .chars()
        .map(|c| if fits(c) { c } else { '-' })
        .collect();
    let name = name.trim_matches(['-', '_']);
    // Only ASCII is left, so that any cut is between characters.
    let name = &name[..name.len().min(mosec_types::id::MAX_NAME_BYTES)];
    PipelineName::new(name.trim_end_matches(['-', '_'])).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_script_gives_its_name_or_its_folders() {
        for (path, name) in [
            ("/srv/ocr/server.py", Some("ocr")),
            ("/srv/ocr/Main.py", Some("ocr")),
            ("/srv/echo/three_stages.py", Some("three_stages")),
            ("/srv/My Project (v2)/app.py", Some("my-project--v2")),
            ("/srv/Größe.py", Some("gr--e")),
            ("/server.py", Some("server")),
            ("/日本/server.py", Some("server")),
            ("/srv/日本.py", None),
            ("/srv/_private.py", Some("private")),
        ] {
            let found = name_of(Path::new(path));
            assert_eq!(found.as_ref().map(PipelineName::as_str), name, "{path}");
        }
    }

    #[test]
    fn a_code_error_says_where_and_what_was_expected() {
        let error: CodeError = serde_json::from_str(
            r#"{"message": "ImportError: no", "file": "server.py", "line": 7, "expected": "a script"}"#,
        )
        .unwrap();
        assert_eq!(
            error.to_string(),
            "server.py:7: ImportError: no (expected a script)"
        );
        let error = CodeError {
            message: "no".into(),
            file: None,
            line: None,
            expected: None,
        };
        assert_eq!(error.to_string(), "no");
    }

    #[test]
    fn an_interpreter_that_is_not_there_is_named() {
        let failure = check("no-such-python", Path::new("/"), &["a:B".into()])
            .unwrap_err()
            .to_string();
        assert!(
            failure.contains("\"no-such-python\"") && failure.contains("hint: --python"),
            "{failure}"
        );
    }

    #[test]
    fn an_interpreter_without_mosec_is_told() {
        let failure = check("true", Path::new("/"), &["a:B".into()])
            .unwrap_err()
            .to_string();
        assert!(
            failure.contains("gave no result") && failure.contains("hint: --python"),
            "{failure}"
        );
        let failure = inspect("echo", Path::new("server.py"), &[], None)
            .unwrap_err()
            .to_string();
        assert!(failure.contains("does not fit this mosectl"), "{failure}");
    }

    #[test]
    fn an_interpreter_is_found_from_any_folder() {
        let here = std::env::current_dir().unwrap();
        let expected = here.join(".venv/bin/python").to_string_lossy().into_owned();
        assert_eq!(interpreter(".venv/bin/python").unwrap(), expected);
        assert_eq!(interpreter("/usr/bin/python3").unwrap(), "/usr/bin/python3");
        assert_eq!(interpreter("python3").unwrap(), "python3");
    }

    proptest! {
        #[test]
        fn any_text_gives_a_valid_name_or_none(text in "\\PC{0,100}") {
            if let Some(name) = valid_name(&text) {
                prop_assert_eq!(PipelineName::new(name.as_str()), Ok(name));
            }
        }
    }
}
