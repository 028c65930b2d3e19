//! What workers write can be read from anywhere, also when they, or parts of the control plane, have died.

use std::time::Duration;

use bytes::Bytes;
use mosec_tests::{Cluster, Daemon, Options, binary, eventually, services};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);

fn manifest(worker: &str) -> String {
    format!(
        "pipeline: talks
source: {}
stages:
  - {{name: only, worker: \"{worker}\", labels: {{zone: a}}, attempts: 1}}
",
        services().display()
    )
}

/// Has the worker say something; whether it lived on.
async fn say(cluster: &Cluster, word: &str, die: bool) -> anyhow::Result<bool> {
    let body = Bytes::from(json!({"say": word, "die": die}).to_string());
    Ok(cluster.client(0).post("/inference", body).await?.status == 200)
}

/// What `mosectl logs` prints, and says beside it.
fn logs(cluster: &Cluster, args: &[&str]) -> anyhow::Result<(String, String)> {
    let args: Vec<_> = ["logs", "talks"].iter().chain(args).copied().collect();
    let output = cluster.mosectl(&args)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    anyhow::ensure!(output.status.success(), "{args:?}: {said}");
    Ok((String::from_utf8(output.stdout)?, said))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_output_of_workers_is_read_through_crashes_of_workers_and_of_the_leader() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    cluster.deploy(&manifest("talks:Talks")).await?;
    cluster.routed(0, "/inference").await?;
    assert!(say(&cluster, "one", false).await?);
    assert!(!say(&cluster, "two", true).await?, "it dies of this");
    cluster
        .until("the worker is back", SOON, |status| {
            let workers = status.workers("talks", "only");
            workers
                .iter()
                .any(|worker| worker.state == "ready" && worker.restarts == 1)
        })
        .await?;

    let (text, said) = logs(&cluster, &[])?;
    let mut at = 0;
    for expected in [
        "* started as process",
        "| loading a model",
        "| saw one",
        "| saw two",
        "* ended, and starts again in",
        "killed by signal 9",
        "* started as process",
        "| loading a model",
    ] {
        let found = text[at..].find(expected);
        at += found.unwrap_or_else(|| panic!("{expected:?} is missing after byte {at}:\n{text}"));
    }
    // What comes another way than by the same pipe may be read a little earlier or later.
    for elsewhere in ["| cannot go on", "* ready after"] {
        assert!(text.contains(elsewhere), "{elsewhere:?} is missing:\n{text}");
    }
    assert!(text.lines().all(|line| line.starts_with("only/1@a r")), "{text}");
    assert_eq!(said, "", "all nodes have answered");
    // The agent's own output has it too, as ever.
    assert!(cluster.agents["a"].log().contains("\nsaw one\n"));

    // Through each member: two of them do not lead.
    for id in 1..=3 {
        let flags = cluster.flags_for(id);
        let (text, _) = logs(&cluster, &[&flags[0], &flags[1], "--tail=1", "--output=json"])?;
        let line: Value = serde_json::from_str(text.trim())?;
        assert_eq!(
            (&line["node"], &line["stage"], &line["replica"]),
            (&json!("a"), &json!("only"), &json!(1)),
            "{line}"
        );
    }
    for (args, error) in [
        (
            ["--stage", "other"],
            "pipeline talks has no stage other, its stages are only",
        ),
        (["--node", "c"], "there is no node c"),
    ] {
        let failed = logs(&cluster, &args).unwrap_err().to_string();
        assert!(failed.contains(error), "{failed}");
    }

    // Who follows sees what is new, once, whoever leads.
    let mut args = vec![
        "logs".into(),
        "talks".into(),
        "--follow".into(),
        "--tail=0".into(),
    ];
    let leader = cluster.leader()?;
    let other = (1..=3).find(|&id| id != leader).expect("there are three");
    let [address, identity] = cluster.flags_for(other);
    let both = format!(
        "{address},{}",
        cluster.flags_for(leader)[0].replace("--control-plane=", "")
    );
    args.extend([both, identity]);
    let follower = Daemon::start("follower", cluster.dir(), &binary("mosectl"), &args)?;
    let mut word = 0;
    eventually("a new line is seen", SOON, || {
        word += 1;
        let (said, cluster) = (format!("new-{word}"), &cluster);
        let follower = &follower;
        async move {
            say(cluster, &said, false).await.ok()?;
            tokio::time::sleep(Duration::from_millis(200)).await;
            follower.log().contains("| saw new-").then_some(())
        }
    })
    .await?;
    cluster.control.get_mut(&leader).expect("it runs").kill()?;
    for word in ["while", "nobody", "leads"] {
        assert!(say(&cluster, word, false).await?);
    }
    eventually("the lines of meanwhile are seen", SOON, || async {
        follower.log().contains("| saw leads").then_some(())
    })
    .await?;
    let seen = follower.log();
    for word in ["while", "nobody", "leads"] {
        assert_eq!(
            seen.matches(&format!("| saw {word}\n")).count(),
            1,
            "{word}: {seen}"
        );
    }
    drop(follower);

    // An agent that is gone is named; the others' output is there.
    cluster.agents.get_mut("b").expect("it runs").kill()?;
    let (text, said) = logs(&cluster, &["--tail=5"])?;
    assert!(text.contains("| saw leads"), "{text}");
    assert!(said.contains("node b has not answered within 5s"), "{said}");
    cluster.end();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_that_failed_can_be_looked_into() -> anyhow::Result<()> {
    let cluster = Cluster::start(Options {
        control: 1,
        gateways: 0,
        agents: vec!["a"],
        ..Options::default()
    })
    .await?;
    let file = cluster.dir().join("bad.yaml");
    std::fs::write(&file, manifest("bad_starts:OutOfMemory"))?;
    let output = cluster.mosectl(&["deploy", "--timeout", "20s", &file.to_string_lossy()])?;
    assert_eq!(output.status.code(), Some(1));
    cluster
        .until("nothing of it runs", SOON, |status| status.is_idle())
        .await?;
    let (text, _) = logs(&cluster, &["--tail=all"])?;
    assert!(text.contains("* MemoryError"), "{text}");
    assert!(text.contains("* ended, as it was told to"), "{text}");
    cluster.end();
    Ok(())
}
