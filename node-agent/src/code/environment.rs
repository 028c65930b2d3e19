//! Virtual environments with what a service needs beyond its interpreter's own packages.
//!
//! An environment is made where it stays, and not renamed once it is complete: the programs in its `bin` carry its
//! path. It sees the packages of the interpreter it was made with, `mosec` among them, behind its own, also where that interpreter is of a
//! virtual environment itself, whose packages `--system-site-packages` would not show.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use tokio::process::Command;

use super::CodeError;
use super::tool::{self, Ran};

/// How long an interpreter may take to say what it is: seconds where its disk is cold.
const LOOK_TIMEOUT: Duration = Duration::from_secs(30);
/// How long making an environment may take: some gigabytes of wheels over a slow link. A deployment's own deadline comes first.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(1800);
/// Makes an installer give up an index that does not answer before a deployment's time is over: a start is tried three times. The
/// node's own settings come first.
const FEW_RETRIES: [(&str, &str); 2] = [("PIP_RETRIES", "1"), ("UV_HTTP_RETRIES", "1")];
/// Lines of an installer's words that an error shows.
const SHOWN_LINES: usize = 12;
/// Prints what an environment depends on.
const LOOK: &str = "import json, site, sys
sites = site.getsitepackages() + ([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])
print(json.dumps({'executable': sys.executable, 'version': sys.version, 'sites': sites}))";
/// Makes the interpreter's packages visible. Python reads such files of its own packages' folder alone.
const BASE: &str = "_mosec_base.pth";

/// A Python interpreter and the folders of its packages.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Interpreter {
    executable: String,
    version: String,
    sites: Vec<String>,
}

impl Interpreter {
    /// Asks an interpreter what it is. Not remembered: it may have been upgraded since.
    pub(crate) async fn look_at(python: &str) -> Result<Self, CodeError> {
        let failed = |problem| CodeError::Interpreter {
            python: python.to_owned(),
            problem,
        };
        let ran = tool::run(Command::new(python).args(["-P", "-c", LOOK]), LOOK_TIMEOUT).await;
        let ran = ran.map_err(failed)?;
        if !ran.status.success() {
            return Err(failed(last_lines(&ran.err)));
        }
        serde_json::from_str(&ran.out).map_err(|error| failed(error.to_string()))
    }

    /// The name of the environment with these requirements: the same for the same interpreter and the same lines.
    pub(crate) fn environment(&self, lines: &[String]) -> String {
        let parts = [&self.executable, &self.version].into_iter();
        let parts = parts
            .chain(&self.sites)
            .chain([const { &String::new() }])
            .chain(lines);
        // No part has a line's end in it that another one could be taken for.
        let text: String = parts.map(|part| format!("{part:?}\n")).collect();
        mosec_bundle::id_of(text.as_bytes()).to_string()
    }
}

/// Makes the environment `path` and installs the requirements, with uv where it is on `PATH`, else with pip.
pub(crate) async fn make(path: PathBuf, base: Interpreter, lines: Vec<String>) -> Result<(), CodeError> {
    let tool = if has_uv().await { "uv" } else { "pip" };
    tracing::info!(path = %path.display(), tool, requirements = lines.len(), "environment is being made");
    let failed = |problem| CodeError::Requirements { tool, problem };
    let made = tokio::time::timeout(INSTALL_TIMEOUT, async {
        match tool {
            "uv" => with_uv(&path, &base, &lines).await,
            _ => with_pip(&path, &base, &lines).await,
        }
    });
    match made.await {
        Ok(Ok(())) => {
            tracing::info!(path = %path.display(), tool, "environment is ready");
            Ok(())
        }
        Ok(Err(problem)) => Err(failed(problem)),
        Err(_) => Err(failed(format!("not done within {INSTALL_TIMEOUT:?}"))),
    }
}

async fn has_uv() -> bool {
    let asked = tool::run(Command::new("uv").arg("--version"), LOOK_TIMEOUT).await;
    asked.is_ok_and(|ran| ran.status.success())
}

async fn with_uv(path: &Path, base: &Interpreter, lines: &[String]) -> Result<(), String> {
    let mut venv = Command::new("uv");
    venv.args(["venv", "--no-project", "--python", &base.executable])
        .arg(path);
    succeed(&mut venv).await?;
    let requirements = write_files(path, base, lines)?;
    let mut install = Command::new("uv");
    install
        .args(["pip", "install", "--python"])
        .arg(path.join("bin/python"));
    succeed(install.arg("-r").arg(requirements)).await
}

async fn with_pip(path: &Path, base: &Interpreter, lines: &[String]) -> Result<(), String> {
    // A pip of its own would take seconds; the interpreter's is seen from here.
    let mut venv = Command::new(&base.executable);
    succeed(venv.args(["-m", "venv", "--without-pip"]).arg(path)).await?;
    let requirements = write_files(path, base, lines)?;
    let python = path.join("bin/python");
    let has_pip = succeed(Command::new(&python).args(["-P", "-c", "import pip"])).await;
    if has_pip.is_err() {
        succeed(Command::new(&python).args(["-P", "-m", "ensurepip"])).await?;
    }
    let mut install = Command::new(&python);
    install.args([
        "-P",
        "-m",
        "pip",
        "install",
        "--no-input",
        "--disable-pip-version-check",
    ]);
    succeed(install.arg("-r").arg(requirements)).await
}

/// Writes what makes the base's packages visible, and the requirements. The path of those.
fn write_files(path: &Path, base: &Interpreter, lines: &[String]) -> Result<PathBuf, String> {
    let failed = |path: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let lib = path.join("lib");
    let versions = std::fs::read_dir(&lib).map_err(|error| failed(&lib, &error))?;
    let packages = versions.flatten().map(|item| item.path().join("site-packages"));
    let packages = packages.into_iter().find(|packages| packages.is_dir());
    let packages = packages.ok_or_else(|| failed(&lib, &"has no folder for packages"))?;
    let sites = base
        .sites
        .iter()
        .map(|site| format!("import site; site.addsitedir({})\n", quoted(site)));
    let file = packages.join(BASE);
    std::fs::write(&file, sites.collect::<String>()).map_err(|error| failed(&file, &error))?;
    let file = path.join("requirements.txt");
    std::fs::write(&file, lines.join("\n") + "\n").map_err(|error| failed(&file, &error))?;
    Ok(file)
}

/// A text as Python reads it.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

async fn succeed(command: &mut Command) -> Result<(), String> {
    // Of whoever has started this agent: its packages are not the interpreter's.
    command.env_remove("VIRTUAL_ENV").env_remove("PYTHONHOME");
    let unset = FEW_RETRIES
        .iter()
        .filter(|(name, _)| std::env::var_os(name).is_none());
    command.envs(unset.copied());
    let Ran { status, out, err } = tool::run(command, INSTALL_TIMEOUT).await?;
    match status.success() {
        true => Ok(()),
        // What went wrong is on standard error, where a program has one.
        false if err.trim().is_empty() => Err(last_lines(&out)),
        false => Err(last_lines(&err)),
    }
}

fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let shown = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
    shown.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_is_named_by_all_that_makes_it() {
        let base = Interpreter {
            executable: "/usr/bin/python3".into(),
            version: "3.11".into(),
            sites: vec!["/usr/lib/a".into()],
        };
        let lines = |lines: &[&str]| lines.iter().map(|&line| line.to_owned()).collect::<Vec<_>>();
        let name = base.environment(&lines(&["a", "b"]));
        assert_eq!(name, base.clone().environment(&lines(&["a", "b"])));
        let upgraded = Interpreter {
            version: "3.12".into(),
            ..base.clone()
        };
        let others = [
            base.environment(&lines(&["b", "a"])),
            base.environment(&lines(&["a\nb"])),
            base.environment(&lines(&["a"])),
            upgraded.environment(&lines(&["a", "b"])),
        ];
        assert!(others.iter().all(|other| *other != name));
    }

    #[test]
    fn the_last_lines_are_shown() {
        let text: String = (0..100).map(|line| format!("line {line}\n\n")).collect();
        let shown = last_lines(&text);
        assert!(
            shown.starts_with("line 88\n") && shown.ends_with("\nline 99"),
            "{shown}"
        );
        assert_eq!(last_lines(""), "");
    }
}
