//! Everything an operator does to a pipeline under load: no request fails, and none is served by two revisions.

use std::time::Duration;

use mosec_tests::{Client, Cluster, Load, Options, Running, eventually, services};
use serde_json::Value;

/// Requests of each gateway that have to be sent between two changes. `MOSEC_TEST_REQUESTS` sets another number.
const BETWEEN: u64 = 150;
const LIMIT: Duration = Duration::from_secs(120);

struct Change<'a> {
    revision: &'a str,
    seconds: &'a str,
    rollout: &'a str,
}

impl Change<'_> {
    fn manifest(&self) -> String {
        let Self {
            revision,
            seconds,
            rollout,
        } = self;
        format!(
            "pipeline: revised
source: {}
timeout: 20s
rollout: {rollout}
stages:
  - name: slow
    worker: revised:Slow
    replicas: 3
    max_batch_size: 8
    max_wait: 2ms
    timeout: 10s
    env: {{REVISION: {revision}, SECONDS: '{seconds}'}}
  - name: last
    worker: revised:Last
    replicas: 2
    max_batch_size: 8
    max_wait: 1ms
    env: {{REVISION: {revision}}}
routes:
  - {{path: /revised, stages: [slow, last]}}
",
            services().display()
        )
    }
}

/// A change that takes over at once, or as `rollout` says.
fn change<'a>(revision: &'a str, rollout: &'a str) -> Change<'a> {
    Change {
        revision,
        seconds: "0.01",
        rollout,
    }
}

fn of_one_revision(answer: &Value) -> Result<(), String> {
    if answer["first"] == answer["last"] && answer["first"].is_string() {
        Ok(())
    } else {
        Err(format!("served by two revisions: {answer}"))
    }
}

/// A cluster under load at both its gateways.
struct Scene {
    cluster: Cluster,
    loads: Vec<Running>,
    between: u64,
}

impl Scene {
    async fn start() -> anyhow::Result<Self> {
        let cluster = Cluster::start(Options {
            gateways: 2,
            agents: vec!["a", "b", "c"],
            ..Options::default()
        })
        .await?;
        cluster.deploy(&change("r0", "{}").manifest()).await?;
        for gateway in 0..2 {
            cluster.routed(gateway, "/revised").await?;
        }
        let load = |gateway| {
            Load {
                concurrency: 32,
                requests: 1_000_000,
                check: of_one_revision,
                ..Load::of(cluster.client(gateway), "/revised")
            }
            .start()
        };
        let loads = vec![load(0), load(1)];
        let wanted = std::env::var("MOSEC_TEST_REQUESTS").ok();
        let between = wanted.map_or(Ok(BETWEEN), |text| text.parse())?;
        let scene = Self {
            cluster,
            loads,
            between,
        };
        scene.goes_on().await?;
        Ok(scene)
    }

    /// Waits until so many more requests have been sent at each gateway.
    async fn goes_on(&self) -> anyhow::Result<()> {
        for load in &self.loads {
            let before = load.sent();
            eventually("the load goes on", Duration::from_secs(600), || async {
                (load.sent() > before + self.between).then_some(())
            })
            .await?;
        }
        Ok(())
    }

    /// Runs `mosectl`, which has to end well; its standard output.
    fn mosectl(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = self.cluster.mosectl(args)?;
        let (out, error) = (
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr),
        );
        anyhow::ensure!(output.status.success(), "{args:?}: {out}{error}");
        Ok(out)
    }

    /// Deploys a change; standard output and whether it ended well.
    fn deploy(&self, change: &Change<'_>) -> anyhow::Result<(String, bool)> {
        let file = self.cluster.dir().join("next.yaml");
        std::fs::write(&file, change.manifest())?;
        let output = self.cluster.mosectl(&["deploy", &file.to_string_lossy()])?;
        let said = [output.stdout, output.stderr].concat();
        Ok((
            String::from_utf8_lossy(&said).into_owned(),
            output.status.success(),
        ))
    }

    fn clients(&self) -> [Client; 2] {
        [self.cluster.client(0), self.cluster.client(1)]
    }

    /// Which revision answers a request with these headers.
    async fn asked(client: &Client, headers: &[(&str, &str)]) -> anyhow::Result<String> {
        let body = "{\"id\": 0}".into();
        let answer = client
            .send(hyper::Method::POST, "/revised", headers, body)
            .await?;
        let answer = answer.json()?;
        Ok(answer["first"].as_str().unwrap_or_default().to_owned())
    }

    /// Waits until nothing but this revision answers at either gateway.
    async fn is_served_by(&self, revision: &str) -> anyhow::Result<()> {
        for client in &self.clients() {
            eventually(revision, LIMIT, || async {
                for _ in 0..10 {
                    if Self::asked(client, &[]).await.ok()? != revision {
                        return None;
                    }
                }
                Some(())
            })
            .await?;
        }
        Ok(())
    }

    /// The rows of `mosectl rollout status`.
    fn revisions(&self) -> anyhow::Result<Vec<Value>> {
        let json = self.mosectl(&["rollout", "status", "revised", "--output", "json"])?;
        Ok(serde_json::from_str(&json)?)
    }

    /// Ends the load; every request has to have its own right answer.
    async fn end(self) -> anyhow::Result<u64> {
        let mut answered = 0;
        for load in self.loads {
            load.stop();
            let report = load.finish().await;
            assert_eq!(
                report.wrong_count, 0,
                "{} answered; {:#?}",
                report.answered, report.wrong
            );
            answered += report.answered;
            eprintln!(
                "{} requests, p50 {:?}, p99 {:?}, longest {:?}",
                report.answered,
                report.quantile(0.5),
                report.quantile(0.99),
                report.quantile(1.0)
            );
        }
        self.cluster.end();
        Ok(answered)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_an_operator_does_fails_a_request() -> anyhow::Result<()> {
    let scene = Scene::start().await?;

    eprintln!("a rolling update");
    let (said, is_well) = scene.deploy(&change("r1", "{max_parallel: 1}"))?;
    assert!(is_well, "{said}");
    scene.is_served_by("r1").await?;
    scene.goes_on().await?;

    eprintln!("a canary that is promoted");
    let canary =
        "{max_parallel: 1, min_healthy_time: 1s, canary: {weight: 20%, header: {name: X-Try, value: new}}}";
    let (said, is_well) = scene.deploy(&change("r2", canary))?;
    assert!(
        is_well && said.contains(" is a canary with 20% of the requests\n"),
        "{said}"
    );
    scene.goes_on().await?;
    for client in &scene.clients() {
        let asked_for = [("x-try", "new")];
        eventually("the canary is asked for", LIMIT, || async {
            (Scene::asked(client, &asked_for).await.ok()? == "r2").then_some(())
        })
        .await?;
        for _ in 0..20 {
            assert_eq!(Scene::asked(client, &asked_for).await?, "r2");
        }
    }
    scene.mosectl(&["traffic", "revised", "60%"])?;
    scene.goes_on().await?;
    let weights: Vec<_> = scene
        .revisions()?
        .iter()
        .map(|row| row["weight"].clone())
        .collect();
    assert_eq!(weights, [40, 60]);
    let said = scene.mosectl(&["rollout", "promote", "revised"])?;
    assert!(said.contains(" is serving\n"), "{said}");
    scene.is_served_by("r2").await?;
    scene.goes_on().await?;

    eprintln!("a canary that reverts by itself");
    let slow = Change {
        revision: "r3",
        seconds: "2",
        rollout: "{canary: {weight: 10%, auto_promote: true}, min_healthy_time: 1s, bounds: {max_p99: 1s, min_requests: 20}}",
    };
    let (said, is_well) = scene.deploy(&slow)?;
    assert!(!is_well, "{said}");
    assert!(
        said.contains("requests took longer than 1s, more than one in a hundred as max_p99 allows"),
        "{said}"
    );
    assert!(said.contains("keeps serving"), "{said}");
    scene.is_served_by("r2").await?;
    scene.goes_on().await?;

    eprintln!("a rollback");
    scene.mosectl(&["rollback", "revised"])?;
    scene.is_served_by("r1").await?;
    scene.goes_on().await?;
    // To one that began with a canary: it does not do so again.
    let said = scene.mosectl(&["rollback", "revised"])?;
    assert!(said.contains(" is serving\n"), "{said}");
    scene.is_served_by("r2").await?;
    scene.goes_on().await?;

    eprintln!("a drain");
    scene.mosectl(&["node", "drain", "a"])?;
    let on_a = |rows: &[Value]| {
        let replicas = rows.iter().filter_map(|row| row["replicas"].as_array()).flatten();
        replicas.filter(|replica| replica["node"] == "a").count()
    };
    assert_eq!(on_a(&scene.revisions()?), 0);
    scene.goes_on().await?;
    scene.mosectl(&["node", "uncordon", "a"])?;

    eprintln!("a scale up and down");
    let said = scene.mosectl(&["scale", "revised", "slow=5", "last=4"])?;
    assert_eq!(said, "revised: slow 5/5  last 4/4\n");
    assert!(on_a(&scene.revisions()?) > 0, "the node takes replicas again");
    scene.goes_on().await?;
    let said = scene.mosectl(&["scale", "revised", "slow=2", "last=1"])?;
    assert_eq!(said, "revised: slow 2/2  last 1/1\n");
    scene.goes_on().await?;

    let answered = scene.end().await?;
    eprintln!("{answered} requests, none failed, none served by two revisions");
    Ok(())
}

/// A deployment ends where nothing but requests is missing, and the rollout goes on when they come.
#[tokio::test(flavor = "multi_thread")]
async fn a_canary_that_nobody_asks_is_the_end_of_its_deployment() -> anyhow::Result<()> {
    let cluster = Cluster::start(Options {
        control: 1,
        agents: vec!["a"],
        ..Options::default()
    })
    .await?;
    cluster.deploy(&change("r0", "{}").manifest()).await?;
    cluster.routed(0, "/revised").await?;
    let rollout = "{canary: {weight: 50%, auto_promote: true}, min_healthy_time: 1s, bounds: {max_error_rate: 1%, min_requests: 20}}";
    let file = cluster.dir().join("next.yaml");
    std::fs::write(&file, change("r1", rollout).manifest())?;
    let output = cluster.mosectl(&["deploy", &file.to_string_lossy()])?;
    let said = String::from_utf8(output.stdout)?;
    anyhow::ensure!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        said.contains("is a healthy canary with 50% of the requests\n")
            && said.contains("once it has had 20 requests (0 so far), if at most 1% of them fail\n"),
        "{said}"
    );
    let client = cluster.client(0);
    eventually("the canary takes over", LIMIT, || async {
        for _ in 0..20 {
            if Scene::asked(&client, &[]).await.ok()? != "r1" {
                return None;
            }
        }
        Some(())
    })
    .await?;
    cluster.end();
    Ok(())
}
