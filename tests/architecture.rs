//! What ARCHITECTURE.md says of the code holds: who may know whom, and which files are on a request's way.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use serde_json::Value;

/// For each of our crates, the ones among them that it may depend on, with what those lead to.
const MAY_KNOW: [(&str, &[&str]); 12] = [
    ("mosec-types", &[]),
    ("mosec-bundle", &["mosec-types"]),
    ("mosec-wire", &["mosec-types"]),
    ("mosec-shm-ring", &["mosec-types"]),
    ("mosec-telemetry", &["mosec-types", "mosec-wire"]),
    (
        "mosec-dispatch",
        &["mosec-types", "mosec-wire", "mosec-shm-ring", "mosec-telemetry"],
    ),
    (
        "mosec-gateway",
        &["mosec-types", "mosec-wire", "mosec-dispatch", "mosec-telemetry"],
    ),
    (
        "mosec-node-agent",
        &[
            "mosec-types",
            "mosec-bundle",
            "mosec-wire",
            "mosec-shm-ring",
            "mosec-dispatch",
            "mosec-telemetry",
        ],
    ),
    (
        "mosec-control-plane",
        &["mosec-types", "mosec-bundle", "mosec-wire", "mosec-telemetry"],
    ),
    (
        "mosectl",
        &[
            "mosec-types",
            "mosec-bundle",
            "mosec-wire",
            "mosec-dispatch",
            "mosec-telemetry",
            "mosec-gateway",
            "mosec-node-agent",
            "mosec-control-plane",
        ],
    ),
    (
        "mosec-python",
        &[
            "mosec-types",
            "mosec-bundle",
            "mosec-wire",
            "mosec-shm-ring",
            "mosec-dispatch",
            "mosec-telemetry",
            "mosec-gateway",
            "mosec-node-agent",
            "mosec-control-plane",
            "mosectl",
        ],
    ),
    ("mosec-tests", &[]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn metadata() -> anyhow::Result<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output()?;
    anyhow::ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn rows(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[test]
fn no_crate_knows_more_than_it_may() -> anyhow::Result<()> {
    let metadata = metadata()?;
    let mut known: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in rows(&metadata["packages"]) {
        let built = rows(&package["dependencies"]).filter(|dependency| dependency["kind"] != "dev");
        known.insert(text(&package["name"]), built.map(|d| text(&d["name"])).collect());
    }
    let ours: BTreeSet<_> = known.keys().cloned().collect();
    let expected: BTreeMap<_, _> = MAY_KNOW.into_iter().collect();
    assert!(
        ours.iter().map(String::as_str).eq(expected.keys().copied()),
        "each crate has its place: {ours:?}"
    );
    for (name, dependencies) in &known {
        let may: BTreeSet<_> = expected[name.as_str()]
            .iter()
            .map(|&name| name.to_owned())
            .collect();
        let strangers: Vec<_> = dependencies
            .intersection(&ours)
            .filter(|name| !may.contains(*name))
            .collect();
        assert!(strangers.is_empty(), "{name} depends on {strangers:?}");
    }
    Ok(())
}

/// The files that the hot path's table names, `a/{b,c}.rs` spelt out, and the folders.
fn hot_path() -> anyhow::Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let document = std::fs::read_to_string(root().join("ARCHITECTURE.md"))?;
    let (_, table) = document.split_once("## Hot path").context("there is a table")?;
    let table = table.split("\n## ").next().unwrap_or_default();
    let cells = table.lines().filter_map(|line| line.split('|').nth(2));
    let names: BTreeSet<_> = cells
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .flat_map(spelt_out)
        .collect();
    let (mut files, mut folders) = (Vec::new(), Vec::new());
    for name in names {
        let path = root().join(&name);
        let path = path
            .canonicalize()
            .with_context(|| format!("{name} is not there"))?;
        if name.ends_with('/') {
            anyhow::ensure!(path.is_dir(), "{name} is no folder");
            folders.push(path);
        } else {
            anyhow::ensure!(path.is_file(), "{name} is no file");
            files.push(path);
        }
    }
    Ok((files, folders))
}

/// All sources of our crates.
fn sources() -> anyhow::Result<Vec<PathBuf>> {
    let metadata = metadata()?;
    let crates = rows(&metadata["packages"]).map(|package| text(&package["manifest_path"]));
    let mut folders: Vec<_> = crates
        .map(|manifest| Path::new(&manifest).with_file_name("src"))
        .filter(|folder| folder.is_dir())
        .collect();
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in folder.read_dir()? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                sources.push(path);
            }
        }
    }
    Ok(sources)
}

fn spelt_out(name: &str) -> Vec<String> {
    let Some((before, rest)) = name.split_once('{') else {
        return vec![name.to_owned()];
    };
    let (choices, after) = rest.split_once('}').unwrap_or((rest, ""));
    choices
        .split(',')
        .map(|choice| format!("{before}{choice}{after}"))
        .collect()
}

#[test]
fn files_on_a_requests_way_say_so() -> anyhow::Result<()> {
    let (files, folders) = hot_path()?;
    assert!(files.len() > 8, "the table names files: {files:?}");
    for file in &files {
        assert!(
            says_so(file)?,
            "{} does not begin with `//! Hot path.`",
            file.display()
        );
    }
    for source in sources()? {
        let source = source.canonicalize()?;
        let is_named = files.contains(&source) || folders.iter().any(|folder| source.starts_with(folder));
        assert!(
            is_named || !says_so(&source)?,
            "{} is not in the table",
            source.display()
        );
    }
    Ok(())
}

fn says_so(source: &Path) -> std::io::Result<bool> {
    Ok(std::fs::read_to_string(source)?.starts_with("//! Hot path."))
}
