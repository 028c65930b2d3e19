//! `mosectl deploy`: commits a new revision and waits until it serves.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use mosec_bundle::Packed;
use mosec_types::{PipelineName, PipelineSpec, units};

use crate::bundle;
use crate::connect::{Connection, connect_to_change};
use crate::failure::{Failure, Result};
use crate::follow;
use crate::manifest::Manifest;
use crate::requirements;
use crate::script;
use crate::terminal::print_error;

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  mosectl deploy server.py                 a MOSEC script, as it is
  mosectl deploy examples/ocr              the pipeline.yaml of a folder, or its server.py
  mosectl deploy server.py --name ocr -- --timeout 5000
  mosectl deploy pipeline.yaml --timeout 10m")]
pub(crate) struct Args {
    /// A MOSEC script (server.py), a manifest (pipeline.yaml), or a folder that has one of that name.
    file: PathBuf,
    #[command(flatten)]
    source: Source,
    /// How long the workers may take to become ready, at each step of the rollout.
    #[arg(long, default_value = "120s", value_parser = parse_timeout)]
    timeout: Duration,
    #[command(flatten)]
    connection: Connection,
}

/// How a file becomes a pipeline.
#[derive(Debug, clap::Args)]
pub(crate) struct Source {
    /// Name of the pipeline. The manifest's or the script's own where absent.
    #[arg(long)]
    name: Option<PipelineName>,
    /// Interpreter that has mosec-cluster and what the code imports, here and on the nodes. Where absent, the
    /// manifest's, else python3 here and the nodes' own default there.
    #[arg(long)]
    python: Option<String>,
    /// Folder of the script's code, which travels to the nodes and which the script runs in. Where absent, the folder that
    /// the script is in. A manifest says it itself.
    #[arg(long = "source", value_name = "DIR", conflicts_with = "no_bundle")]
    folder: Option<PathBuf>,
    /// Sends no code: it is in the same folder on each node.
    #[arg(long)]
    no_bundle: bool,
    /// Largest bundle of code, compressed. The control plane has a limit of its own.
    #[arg(long, default_value = "64MiB", value_name = "SIZE", value_parser = units::parse_size)]
    max_bundle_size: u64,
    /// Arguments of the script.
    #[arg(last = true, value_name = "SCRIPT ARGS")]
    arguments: Vec<String>,
}

impl Source {
    /// Packs the code that `spec` names, where it is to travel.
    pub(crate) fn pack(&self, spec: &mut PipelineSpec) -> Result<Option<Packed>> {
        if self.no_bundle {
            return Ok(None);
        }
        bundle::pack(spec, self.max_bundle_size).map(Some)
    }
}

pub(crate) fn parse_timeout(text: &str) -> Result<Duration, String> {
    match units::parse_duration(text)? {
        Duration::ZERO => Err("expected a time above zero".into()),
        timeout => Ok(timeout),
    }
}

pub(crate) async fn run(args: Args) -> Result {
    // Before the code is looked at, which can take long.
    let cluster = connect_to_change(&args.connection)?;
    let mut spec = specification(&args.file, &args.source)?;
    if let Some(packed) = args.source.pack(&mut spec)? {
        bundle::put(&cluster, packed).await?;
    }
    let revision = cluster
        .client
        .deploy(&spec, Some(args.timeout))
        .await
        .context("cannot deploy")?;
    follow::until_it_serves(&cluster, &spec.name, revision, args.timeout).await
}

/// What is looked for in a folder, the more telling first.
const OF_A_FOLDER: [&str; 3] = ["pipeline.yaml", "pipeline.yml", "server.py"];

/// The file that is meant: of a folder the one it has.
fn file_of(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    let mut files = OF_A_FOLDER.iter().map(|name| path.join(name));
    files.find(|file| file.is_file()).ok_or_else(|| {
        let (folder, names) = (path.display(), OF_A_FOLDER.join(", "));
        Failure::usage(format!("the folder {folder} has none of {names}"))
    })
}

/// What a file or a folder stands for, its Python code looked at.
pub(crate) fn specification(path: &Path, args: &Source) -> Result<PipelineSpec> {
    let file = &file_of(path)?;
    let extension = file
        .extension()
        .and_then(|extension| extension.to_str())
        .unwrap_or_default();
    let mut spec = match extension {
        "py" => from_script(file, args)?,
        "yaml" | "yml" if args.folder.is_some() => {
            return Err(Failure::usage(
                "--source is for scripts; a manifest has the key `source`",
            ));
        }
        "yaml" | "yml" if !args.arguments.is_empty() => {
            return Err(Failure::usage(
                "arguments after -- are for scripts; a manifest takes none",
            ));
        }
        "yaml" | "yml" => from_manifest(file, args.python.as_deref())?,
        _ => {
            let file = file.display();
            return Err(Failure::usage(format!(
                "expected a .py script or a .yaml manifest, found {file}"
            )));
        }
    };
    if let Some(name) = &args.name {
        spec.name = name.clone();
    }
    if let Some(python) = &args.python {
        spec.source.python = Some(script::interpreter(python)?);
    }
    spec.validate_for_cluster().context("the pipeline is not valid")?;
    Ok(spec)
}

fn from_script(file: &Path, args: &Source) -> Result<PipelineSpec> {
    let python = args.python.clone().unwrap_or_else(default_python);
    let mut spec = if args.no_bundle {
        script::inspect(&python, file, &args.arguments, None)?
    } else {
        // As on the nodes: there the bundle's folder is all there is.
        let (folder, script) = bundle::folder_of(file, args.folder.as_deref())?;
        let python = script::interpreter(&python)?;
        script::inspect(&python, &script, &args.arguments, Some(&folder))?
    };
    // The interpreter of this host, which need not be where the nodes have theirs.
    spec.source.python = None;
    if args.name.is_none() {
        let found = script::name_of(&std::path::absolute(file)?);
        spec.name = found.ok_or_else(|| {
            Failure::usage(format!("no pipeline name can be made of {}", file.display()))
                .hint("--name gives one")
        })?;
    }
    Ok(spec)
}

fn from_manifest(path: &Path, python: Option<&str>) -> Result<PipelineSpec> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let absolute = std::path::absolute(path)?;
    let folder = absolute.parent().unwrap_or(Path::new("/"));
    let manifest = Manifest::parse(&text, &path.to_string_lossy(), folder)?;
    let own = manifest.spec.source.python.clone();
    let python = python.map(str::to_owned).or(own).unwrap_or_else(default_python);
    let dir = Path::new(&manifest.spec.source.dir);
    let found = script::check(&python, dir, &manifest.workers())?;
    let mut spec = manifest.spec.clone();
    let mut problems = Vec::new();
    if let Some(file) = &manifest.requirements_file {
        match requirements::read(&dir.join(file)) {
            Ok(lines) => spec.source.requirements = lines,
            Err(problem) => problems.push(("requirements".to_owned(), problem)),
        }
    }
    for line in requirements::without_mosec(&mut spec.source.requirements) {
        print_error(&format!(
            "the requirement {line:?} is left out: each node's interpreter has it\n"
        ));
    }
    for (index, (stage, worker)) in spec.stages.iter_mut().zip(found).enumerate() {
        if let Some(error) = worker.error {
            problems.push((format!("stages[{index}].worker"), error.to_string()));
        }
        if let Some(mime) = worker.mime {
            stage.mime = mime;
        }
        stage.streaming = worker.streaming;
        stage.request_headers = worker.request_headers;
    }
    if !problems.is_empty() {
        return Err(manifest.refuse_all(problems).into());
    }
    Ok(spec)
}

/// The interpreter that this program came with, where it came in a wheel.
fn default_python() -> String {
    std::env::var("MOSEC_PYTHON").unwrap_or_else(|_| "python3".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_stands_for_its_manifest_or_its_script() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let refused = file_of(path).unwrap_err().to_string();
        assert!(
            refused.ends_with("has none of pipeline.yaml, pipeline.yml, server.py"),
            "{refused}"
        );
        for name in ["server.py", "pipeline.yml", "pipeline.yaml"] {
            std::fs::write(path.join(name), "").unwrap();
            assert_eq!(file_of(path).unwrap(), path.join(name));
        }
        assert_eq!(file_of(&path.join("server.py")).unwrap(), path.join("server.py"));
    }

    #[test]
    fn a_timeout_is_above_zero() {
        assert_eq!(parse_timeout("2m"), Ok(Duration::from_secs(120)));
        assert!(parse_timeout("0s").is_err() && parse_timeout("120").is_err());
    }
}
