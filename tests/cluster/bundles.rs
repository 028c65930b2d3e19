//! A service's code travels to its nodes, and stays when the folder that it came from is gone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use mosec_tests::{Client, Cluster, Options, eventually, python};

/// Says what a file beside it says, and what a package has that may be required.
const SERVICE: &str = r#"
from pathlib import Path

from mosec import Worker

from parts import shout


class Say(Worker):
    def __init__(self):
        try:
            from required_thing import VALUE
        except ImportError:
            VALUE = None
        self.value = VALUE

    def forward(self, data):
        return {"text": shout(Path("text.txt").read_text()), "value": self.value}
"#;

fn write_service(folder: &Path, text: &str) -> anyhow::Result<()> {
    fs::create_dir_all(folder.join("parts"))?;
    fs::write(folder.join("service.py"), SERVICE)?;
    fs::write(
        folder.join("parts/__init__.py"),
        "def shout(text): return text.upper()\n",
    )?;
    fs::write(folder.join("text.txt"), text)?;
    Ok(())
}

fn manifest(folder: &Path, replicas: u32, more: &str) -> String {
    format!(
        "pipeline: say\nsource: {}\n{more}stages:\n  - name: say\n    worker: service:Say\n    replicas: {replicas}\n\
         routes:\n  - {{path: /say, stages: [say]}}\n",
        folder.display()
    )
}

async fn says(client: &Client, text: &str) -> anyhow::Result<serde_json::Value> {
    eventually(text, Duration::from_secs(20), || async {
        let answer = client.post("/say", "{}").await.ok()?.json().ok()?;
        (answer["text"] == text).then_some(answer)
    })
    .await
}

/// Kills every worker and waits until each has been started again.
async fn restart_workers(cluster: &Cluster) -> anyhow::Result<()> {
    for worker in cluster.status()?.workers("say", "say") {
        mosec_tests::kill(worker.pid.unwrap_or_default())?;
    }
    cluster
        .until("all workers are back", Duration::from_secs(30), |status| {
            let workers = status.workers("say", "say");
            !workers.is_empty()
                && workers
                    .iter()
                    .all(|worker| worker.state == "ready" && worker.restarts > 0)
        })
        .await
        .map(drop)
}

fn bundles(cluster: &Cluster, member: u64) -> usize {
    let dir = cluster.dir().join(format!("data-{member}/bundles"));
    fs::read_dir(dir).map_or(0, Iterator::count)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployed_service_needs_its_folder_no_more() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options {
        agents: vec!["a"],
        ..Options::default()
    })
    .await?;
    let folder = cluster.dir().join("service");
    write_service(&folder, "one")?;
    cluster.deploy(&manifest(&folder, 2, "")).await?;
    cluster.routed(0, "/say").await?;
    let client = cluster.client(0);
    says(&client, "ONE").await?;

    // A majority is enough; the one that was away gets its copy later.
    let leader = cluster.leader()?;
    let lost = if leader == 1 { 2 } else { 1 };
    cluster.control.get_mut(&lost).expect("it runs").kill()?;
    fs::write(folder.join("text.txt"), "two")?;
    cluster.deploy(&manifest(&folder, 2, "")).await?;
    says(&client, "TWO").await?;
    assert_eq!((bundles(&cluster, leader), bundles(&cluster, lost)), (2, 1));
    cluster.start_control(lost)?;
    eventually(
        "the bundle is on all members",
        Duration::from_secs(30),
        || async { (bundles(&cluster, lost) == 2).then_some(()) },
    )
    .await?;

    fs::remove_dir_all(&folder)?;
    restart_workers(&cluster).await?;
    says(&client, "TWO").await?;

    // To a node that has never seen it.
    cluster.join_agent("b")?;
    cluster
        .until("both agents are up", Duration::from_secs(30), |status| {
            status.nodes_up() == 2
        })
        .await?;
    let back = cluster.mosectl(&["rollback", "say"])?;
    assert!(back.status.success(), "{back:?}");
    says(&client, "ONE").await?;
    let mut nodes: Vec<_> = cluster
        .status()?
        .workers("say", "say")
        .into_iter()
        .map(|worker| worker.node)
        .collect();
    nodes.sort();
    assert_eq!(nodes, ["a", "b"]);
    restart_workers(&cluster).await?;
    says(&client, "ONE").await?;

    // Without the control plane, code and environment are found on the node.
    for member in cluster.control.values_mut() {
        member.kill()?;
    }
    cluster.agents.get_mut("b").expect("it runs").kill()?;
    cluster.agents.get_mut("a").expect("it runs").kill()?;
    cluster.start_agent("a")?;
    says(&client, "ONE").await?;
    cluster.end();
    Ok(())
}

/// Makes a wheel with one module, without any tool for it.
fn wheel(folder: &Path) -> anyhow::Result<()> {
    let script = r#"
import sys, zipfile
name = "required_thing"
info = f"{name}-1.0.dist-info"
files = {
    f"{name}.py": "VALUE = 42\n",
    f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
    f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
}
files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
with zipfile.ZipFile(f"{sys.argv[1]}/{name}-1.0-py3-none-any.whl", "w") as wheel:
    for file, text in files.items():
        wheel.writestr(file, text)
"#;
    let made = Command::new(python()).args(["-c", script]).arg(folder).status()?;
    anyhow::ensure!(made.success(), "the wheel could not be made");
    Ok(())
}

fn failed(output: &std::process::Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    said
}

fn written(cluster: &Cluster, manifest: &str) -> anyhow::Result<PathBuf> {
    let file = cluster.dir().join("pipeline.yaml");
    fs::write(&file, manifest)?;
    Ok(file)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_service_requires_is_installed_or_its_revision_fails() -> anyhow::Result<()> {
    let cluster = Cluster::start(Options {
        control: 1,
        agents: vec!["a"],
        ..Options::default()
    })
    .await?;
    let folder = cluster.dir().join("service");
    write_service(&folder, "one")?;
    cluster.deploy(&manifest(&folder, 2, "")).await?;
    cluster.routed(0, "/say").await?;
    let client = cluster.client(0);
    assert_eq!(says(&client, "ONE").await?["value"], serde_json::Value::Null);

    fs::write(folder.join("text.txt"), "two")?;
    let missing = manifest(&folder, 2, "requirements: [--no-index, no-such-thing==9.9]\n");
    let file = written(&cluster, &missing)?;
    let started = Instant::now();
    let said = failed(&cluster.mosectl(&["deploy", "--timeout", "60s", &file.to_string_lossy()])?);
    assert!(started.elapsed() < Duration::from_secs(60));
    for words in [
        "the requirements cannot be installed",
        "no-such-thing==9.9",
        "keeps serving",
    ] {
        assert!(said.contains(words), "{words} is missing in: {said}");
    }
    says(&client, "ONE").await?;

    wheel(cluster.dir())?;
    let lines = format!(
        "# for tests\n--no-index\n--find-links {}\nrequired_thing==1.0\n",
        cluster.dir().display()
    );
    fs::write(folder.join("requirements.txt"), lines)?;
    cluster
        .deploy(&manifest(&folder, 2, "requirements: requirements.txt\n"))
        .await?;
    assert_eq!(says(&client, "TWO").await?["value"], 42);
    restart_workers(&cluster).await?;
    assert_eq!(says(&client, "TWO").await?["value"], 42);
    let made = fs::read_dir(cluster.dir().join("state-a/environments"))?.count();
    assert_eq!(made, 2, "one environment for both replicas, and its mark");

    // Noise, which does not compress.
    let noise: Vec<u8> = (0..200_000u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes())
        .collect();
    fs::write(folder.join("weights.bin"), noise)?;
    let file = written(&cluster, &manifest(&folder, 1, ""))?;
    let deploy = ["deploy", "--max-bundle-size", "100KiB", &file.to_string_lossy()];
    let said = failed(&cluster.mosectl(&deploy)?);
    for words in [
        "weights.bin (781.2 KiB)",
        "100.0 KiB",
        ".mosecignore",
        "--max-bundle-size",
    ] {
        assert!(said.contains(words), "{words} is missing in: {said}");
    }
    fs::write(folder.join(".mosecignore"), "*.bin\n")?;
    let deployed = cluster.mosectl(&deploy)?;
    assert!(deployed.status.success(), "{deployed:?}");

    fs::write(folder.join("text.txt"), "here")?;
    let deployed = cluster.mosectl(&["deploy", "--no-bundle", &file.to_string_lossy()])?;
    assert!(deployed.status.success(), "{deployed:?}");
    says(&client, "HERE").await?;
    fs::write(folder.join("text.txt"), "there")?;
    says(&client, "THERE").await?;
    cluster.end();
    Ok(())
}
