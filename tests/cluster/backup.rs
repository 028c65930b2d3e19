//! All disks of the control plane are lost, and it is restored from a backup under the agents and gateways that run on.

use std::fs;
use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mosec_tests::{Client, Cluster, Options, eventually};

const SERVICE: &str = r#"
from pathlib import Path

from mosec import Worker


class Say(Worker):
    def forward(self, data):
        return {"text": Path("text.txt").read_text()}
"#;

/// A service that says `text`, as a manifest.
fn service(cluster: &Cluster, name: &str, text: &str) -> anyhow::Result<String> {
    let folder = cluster.dir().join(format!("service-{name}"));
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("service.py"), SERVICE)?;
    fs::write(folder.join("text.txt"), text)?;
    Ok(format!(
        "pipeline: {name}\nsource: {}\nstages:\n  - name: say\n    worker: service:Say\n    replicas: 2\n\
         routes:\n  - {{path: /{name}, stages: [say]}}\n",
        folder.display()
    ))
}

async fn said(client: &Client, name: &str) -> Option<String> {
    let answer = client.post(&format!("/{name}"), "{}").await.ok()?.json().ok()?;
    Some(answer["text"].as_str()?.to_owned())
}

async fn says(client: &Client, name: &str, text: &str) -> anyhow::Result<()> {
    eventually(text, Duration::from_secs(30), || async {
        (said(client, name).await? == text).then_some(())
    })
    .await
}

/// Sends one request after the other to a pipeline that nobody touches; what went wrong is its result.
fn load(client: Client, stop: Arc<AtomicBool>) -> tokio::task::JoinHandle<(u64, Vec<String>)> {
    tokio::spawn(async move {
        let (mut right, mut wrong) = (0, Vec::new());
        while !stop.load(Ordering::Relaxed) {
            match client.post("/steady", "{}").await {
                Ok(answer) if answer.status == 200 => right += 1,
                other => wrong.push(format!("{other:?}")),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        (right, wrong)
    })
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_without_any_disk_is_restored_under_load() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    for (name, text) in [("steady", "one"), ("changes", "one")] {
        cluster.deploy(&service(&cluster, name, text)?).await?;
        cluster.routed(0, &format!("/{name}")).await?;
    }
    let client = cluster.client(0);
    let file = cluster.dir().join("the.backup");
    let path = file.to_string_lossy().into_owned();
    let made = cluster.mosectl(&["backup", &path])?;
    assert!(made.status.success(), "{}", errors(&made));
    let looked_at = cluster.mosectl(&["backup", "--check", &path])?;
    assert_eq!(made.stdout, looked_at.stdout);
    let text = String::from_utf8_lossy(&made.stdout).into_owned();
    for part in [
        "cluster test  taken ",
        "all checked",
        "changes",
        "steady",
        "nodes 2",
        "bundles 1",
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    let again = cluster.mosectl(&["backup", &path])?;
    assert!(errors(&again).contains("is there already"), "{}", errors(&again));

    // What comes after the backup.
    cluster.deploy(&service(&cluster, "changes", "two")?).await?;
    says(&client, "changes", "two").await?;
    cluster.deploy(&service(&cluster, "late", "late")?).await?;
    says(&client, "late", "late").await?;
    let late = cluster.newest_revision("late")?;

    let living = cluster.restore(1, &path, "test")?;
    assert!(!living.status.success());
    let refused = errors(&living);
    assert!(refused.contains("data-1 is not empty: it has "), "{refused}");
    // A folder that is empty, as on a new disk, beside members that live.
    cluster.control.get_mut(&3).expect("it runs").kill()?;
    fs::remove_dir_all(cluster.dir().join("data-3"))?;
    let refused = errors(&cluster.restore(3, &path, "test")?);
    assert!(
        refused.contains(
            "serves this cluster: a member without its disk is started empty and filled by the others"
        ),
        "{refused}"
    );
    assert!(!cluster.dir().join("data-3").exists());

    let stop = Arc::new(AtomicBool::new(false));
    let loaded = load(cluster.client(0), stop.clone());
    for member in [1, 2] {
        cluster.control.get_mut(&member).expect("it runs").kill()?;
        fs::remove_dir_all(cluster.dir().join(format!("data-{member}")))?;
    }
    refuses_what_is_wrong(&cluster, &file)?;
    for member in 1..=3 {
        let restored = cluster.restore(member, &path, "test")?;
        assert!(restored.status.success(), "{}", errors(&restored));
        cluster.start_control(member)?;
    }
    cluster
        .until("the agents are back", Duration::from_secs(30), |status| {
            status.nodes_up() == 2
        })
        .await?;
    says(&client, "changes", "one").await?;
    eventually("the late one goes", Duration::from_secs(30), || async {
        let answer = client.post("/late", "{}").await.ok()?;
        (answer.status == 404).then_some(())
    })
    .await?;
    // Its workers, too: each node runs what is in the backup and nothing else.
    cluster.deploy(&service(&cluster, "late", "later")?).await?;
    says(&client, "late", "later").await?;
    assert!(cluster.newest_revision("late")? > late + 1_000_000);
    stop.store(true, Ordering::Relaxed);
    let (right, wrong) = loaded.await?;
    assert!(wrong.is_empty() && right > 0, "{right} right, wrong: {wrong:?}");

    // As ever, a member that loses its disk now is filled by the others.
    cluster.control.get_mut(&2).expect("it runs").kill()?;
    fs::remove_dir_all(cluster.dir().join("data-2"))?;
    cluster.start_control(2)?;
    eventually("the member is filled", Duration::from_secs(30), || async {
        let snapshots = fs::read_dir(cluster.dir().join("data-2/bundles")).ok()?;
        (snapshots.count() >= 2).then_some(())
    })
    .await?;
    cluster.end();
    Ok(())
}

fn refuses_what_is_wrong(cluster: &Cluster, file: &Path) -> anyhow::Result<()> {
    let refused = |path: &Path, cluster_id: &str| -> anyhow::Result<String> {
        let output = cluster.restore(1, &path.to_string_lossy(), cluster_id)?;
        assert!(!output.status.success());
        assert!(!cluster.dir().join("data-1").exists(), "nothing is written");
        Ok(errors(&output))
    };
    let text = refused(file, "other")?;
    assert!(
        text.contains("the backup is of cluster \"test\", not of \"other\""),
        "{text}"
    );
    let good = fs::read(file)?;
    let bad = cluster.dir().join("bad.backup");
    fs::write(&bad, &good[..good.len() - 20])?;
    let text = refused(&bad, "test")?;
    assert!(text.contains("bad.backup is cut short in its end"), "{text}");
    let mut flipped = good.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    fs::write(&bad, &flipped)?;
    let text = refused(&bad, "test")?;
    assert!(text.contains("bad.backup is damaged in "), "{text}");
    fs::write(&bad, b"something else")?;
    let text = refused(&bad, "test")?;
    assert!(
        text.contains("bad.backup is no backup: it does not begin as one"),
        "{text}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn code_that_no_member_has_any_more_does_not_keep_the_rest_from_being_saved() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options {
        control: 1,
        agents: vec!["a"],
        ..Options::default()
    })
    .await?;
    let client = cluster.client(0);
    let bundles = cluster.dir().join("data-1/bundles");
    cluster.deploy(&service(&cluster, "changes", "one")?).await?;
    let first = cluster.newest_revision("changes")?;
    let old: Vec<_> = fs::read_dir(&bundles)?.collect::<Result<_, _>>()?;
    cluster.deploy(&service(&cluster, "changes", "two")?).await?;
    says(&client, "changes", "two").await?;
    let last = cluster.newest_revision("changes")?;
    eventually("the first revision's end", Duration::from_secs(30), || async {
        let status = cluster.mosectl(&["status", "--output", "json"]).ok()?;
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).ok()?;
        (!status.to_string().contains(&format!("\"revision\":{first},"))).then_some(())
    })
    .await?;
    for file in old {
        fs::remove_file(file.path())?;
    }
    let path = |name: &str| cluster.dir().join(name).to_string_lossy().into_owned();
    let usable = path("usable.backup");
    let made = cluster.mosectl(&["backup", &usable])?;
    let said = errors(&made);
    assert!(made.status.success(), "{said}");
    let lacks = format!("warning: the code of changes {first} is missing: bundle ");
    assert!(said.starts_with(&lacks), "{said}");
    let text = String::from_utf8_lossy(&made.stdout).into_owned();
    assert!(text.contains("bundles 1 (1 missing)"), "{text}");

    for file in fs::read_dir(&bundles)? {
        fs::remove_file(file?.path())?;
    }
    let poor = path("poor.backup");
    let refused = cluster.mosectl(&["backup", &poor])?;
    let said = errors(&refused);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    for part in [
        &*format!("the code of changes {last} is missing, which changes {last} runs on"),
        "the backup lacks 1 of the bundles that revisions run on",
        "--allow-missing",
    ] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    assert!(!Path::new(&poor).exists());
    let taken = cluster.mosectl(&["backup", "--allow-missing", &poor])?;
    assert!(taken.status.success(), "{}", errors(&taken));
    let checked = cluster.mosectl(&["backup", "--check", &poor])?;
    assert_eq!(checked.status.code(), Some(1), "{}", errors(&checked));

    cluster.control.get_mut(&1).expect("it runs").kill()?;
    fs::remove_dir_all(cluster.dir().join("data-1"))?;
    let restored = cluster.restore(1, &usable, "test")?;
    let said = errors(&restored);
    assert!(restored.status.success() && said.starts_with(&lacks), "{said}");
    cluster.end();
    Ok(())
}
