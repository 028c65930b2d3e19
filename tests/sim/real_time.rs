//! Histories of real processes that are killed, stalled and cut off, checked as those in virtual time are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mosec_types::PipelineName;
use mosec_wire::control::proto::{self, Phase};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;
use tonic::{Code, Status};

use crate::agent::Agent;
use crate::client::Notes;
use crate::faults::Faults;
use crate::fixtures::with_canary;
use crate::processes::{Members, PATIENCE};
use crate::report::{self, Tally};
use crate::spec::{Act, CANARY_WEIGHT, History, No, Outcome, Rollouts, View, verify};

/// How long clients go on in one history.
const TROUBLED: Duration = Duration::from_secs(5);
const CLIENTS: u64 = 4;
/// Time for one try at one member.
const ATTEMPT: Duration = Duration::from_secs(3);
/// The node whose replicas are ready. The nodes that clients register are none for replicas.
const AGENT: &str = "agent";

/// `make linearizability`: as many histories as `HISTORIES` says.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes; writes LINEARIZABILITY.md"]
async fn real_members_are_as_one() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let (histories, first) = (
        number("HISTORIES").unwrap_or(100),
        number("SIM_SEED").unwrap_or(1),
    );
    let mut members = Members::start(3).await;
    let agent = Agent::start(members.client(), AGENT).await;
    let mut tally = Tally::default();
    for seed in first..first + histories {
        let (history, faults) = one(&mut members, seed).await;
        let verdict = verify(&history, Rollouts::ByReconciler);
        if let Err(problem) = &verdict {
            println!("history {seed}: {problem}");
        }
        tally.add(&format!("history {seed}"), &history, &faults, &verdict);
    }
    agent.stop().await;
    let text = format!(
        "# Histories of real processes\n\nWritten by `make linearizability` on {}: three members as processes on one \
         machine, with links that can be cut, and a node whose replicas are ready at once; {} histories of {CLIENTS} \
         clients and {} s.\n\n{}",
        report::today(),
        tally.histories,
        TROUBLED.as_secs(),
        tally.tables(),
    );
    report::write("LINEARIZABILITY.md", &text);
    println!("{text}");
    assert!(tally.failures.is_empty());
}

/// One history on running members, with names of its own; then all troubles end.
async fn one(members: &mut Members, seed: u64) -> (History, Faults) {
    let mut rng = StdRng::seed_from_u64(seed);
    let notes = Notes::new();
    let end = tokio::time::Instant::now() + TROUBLED;
    let clients: Vec<_> = (1..=CLIENTS)
        .map(|id| {
            let services = members
                .all()
                .into_iter()
                .map(|member| members.service(member))
                .collect();
            let client = Client {
                id,
                prefix: format!("h{seed}-"),
                services,
                notes: notes.clone(),
                rng: StdRng::seed_from_u64(rng.random()),
                seq: 0,
            };
            tokio::spawn(client.run(end))
        })
        .collect();
    let faults = trouble(members, &mut rng, end).await;
    for client in clients {
        client.await.unwrap();
    }
    let services = members
        .all()
        .into_iter()
        .map(|member| members.service(member))
        .collect();
    let mut last = Client {
        id: 0,
        prefix: format!("h{seed}-"),
        services,
        notes: notes.clone(),
        rng,
        seq: 0,
    };
    let end = tokio::time::Instant::now() + PATIENCE;
    while last.call(Act::Read).await == Outcome::Unknown {
        assert!(
            tokio::time::Instant::now() < end,
            "no read had an answer within {PATIENCE:?} of all troubles"
        );
    }
    let history = notes.history();
    // What this history has made would only slow the next ones down.
    let client = members.client();
    for side in ["left", "right"] {
        drop(client.delete(&PipelineName::new(last.name(side)).unwrap()).await);
    }
    (history, faults)
}

/// Makes trouble until `end`, and ends it.
async fn trouble(members: &mut Members, rng: &mut StdRng, end: tokio::time::Instant) -> Faults {
    let mut faults = Faults::new();
    while tokio::time::Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(rng.random_range(200..1200))).await;
        let lasts = Duration::from_millis(rng.random_range(100..2000));
        let member = victim(members, rng).await;
        let fault = match rng.random_range(0..4) {
            0 => {
                members.kill(member);
                tokio::time::sleep(lasts).await;
                members.run(member);
                "member killed"
            }
            1 => {
                members.signal(member, Signal::STOP);
                tokio::time::sleep(lasts).await;
                members.signal(member, Signal::CONT);
                "member stalled"
            }
            2 => {
                members.cut_off(member, true);
                tokio::time::sleep(lasts).await;
                members.cut_off(member, false);
                "member cut off"
            }
            _ if rng.random_bool(0.3) => {
                for member in members.all() {
                    members.kill(member);
                }
                for member in members.all() {
                    members.run(member);
                }
                "all killed"
            }
            _ => "none",
        };
        *faults.entry(fault).or_default() += 1;
    }
    faults
}

/// The leader more often than others.
async fn victim(members: &Members, rng: &mut StdRng) -> u64 {
    let any = rng.random_range(1..=3);
    if rng.random_bool(0.4) {
        return any;
    }
    let asked = tokio::time::timeout(Duration::from_millis(500), async {
        let status = members.service(any).status(proto::StatusRequest {}).await;
        status.map_or(any, |status| status.into_inner().leader)
    });
    asked.await.unwrap_or(any)
}

type Service = proto::control_plane_client::ControlPlaneClient<tonic::transport::Channel>;

struct Client {
    id: u64,
    /// What this history's names begin with.
    prefix: String,
    services: Vec<Service>,
    notes: Arc<Notes>,
    rng: StdRng,
    seq: u64,
}

impl Client {
    fn name(&self, side: &str) -> String {
        format!("{}{side}", self.prefix)
    }

    async fn run(mut self, end: tokio::time::Instant) {
        while tokio::time::Instant::now() < end {
            let pause = self.rng.random_range(0..300);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            let act = self.choose();
            if let Outcome::View(view) = self.call(act).await
                && let Some(pipeline) = with_a_canary(&view)
                && self.rng.random_bool(0.7)
            {
                let act = self.set_traffic(pipeline);
                self.call(act).await;
            }
        }
    }

    fn set_traffic(&mut self, pipeline: String) -> Act {
        // Now and then the weight that it has.
        let weight = self.rng.random_range(0..=10) * 10;
        Act::SetTraffic { pipeline, weight }
    }

    fn choose(&mut self) -> Act {
        let side = if self.rng.random_bool(0.5) {
            "left"
        } else {
            "right"
        };
        let pipeline = self.name(side);
        match self.rng.random_range(0..100) {
            0..40 => Act::Read,
            40..65 => Act::Deploy {
                pipeline,
                mark: self.notes.mark(),
            },
            65..75 => self.set_traffic(pipeline),
            75..81 => Act::Delete { pipeline },
            _ => Act::Register {
                node: self.name("node"),
                incarnation: self.rng.random_range(1..30),
            },
        }
    }

    async fn call(&mut self, act: Act) -> Outcome {
        let call = self.notes.begin(self.id, act.clone());
        self.seq += 1;
        let tries = if matches!(act, Act::Register { .. }) { 1 } else { 5 };
        let mut outcome = Outcome::Unknown;
        for _ in 0..tries {
            let service = self.services[self.rng.random_range(0..self.services.len())].clone();
            let answer = tokio::time::timeout(ATTEMPT, self.attempt(service, &act)).await;
            outcome = answer.unwrap_or(Outcome::Unknown);
            if outcome != Outcome::Unknown {
                break;
            }
            tokio::time::sleep(Duration::from_millis(self.rng.random_range(20..320))).await;
        }
        self.notes.end(call, outcome.clone());
        outcome
    }

    async fn attempt(&self, mut service: Service, act: &Act) -> Outcome {
        let dedup = Some(proto::Dedup {
            client: format!("{}{}", self.prefix, self.id),
            seq: self.seq,
        });
        const HOUR_MS: u64 = 3_600_000;
        let answer = match act {
            Act::Read => service
                .status(proto::StatusRequest {})
                .await
                .map(|status| Outcome::View(self.view(status.into_inner()))),
            Act::Deploy { pipeline: name, mark } => {
                let mut spec = with_canary(CANARY_WEIGHT);
                spec.stages[0].node_labels = [("node".to_owned(), AGENT.to_owned())].into();
                spec.name = PipelineName::new(name).unwrap();
                spec.routes[0].path = format!("/{name}");
                spec.source.argv = vec![mark.to_string()];
                let request = proto::DeployRequest {
                    spec: Some((&spec).into()),
                    dedup,
                    healthy_deadline_ms: HOUR_MS,
                    ..Default::default()
                };
                service
                    .deploy(request)
                    .await
                    .map(|reply| Outcome::Deployed(reply.into_inner().revision))
            }
            Act::Delete { pipeline } => {
                let pipeline = pipeline.clone();
                let request = proto::DeleteRequest {
                    pipeline,
                    dedup,
                    ..Default::default()
                };
                service.delete(request).await.map(|_| Outcome::Done(None))
            }
            Act::Register { node, incarnation } => {
                let request = proto::RegisterNodeRequest {
                    id: node.clone(),
                    incarnation: *incarnation,
                    address: "host:7443".into(),
                    labels: Default::default(),
                    ..Default::default()
                };
                let reply = service.register_node(request).await;
                reply.map(|reply| Outcome::Done(Some(reply.into_inner().version)))
            }
            Act::Rollback { .. } => unreachable!("its mark would not be seen in a status"),
            Act::Canary { .. } | Act::Serve { .. } => unreachable!("the reconciler does that"),
            Act::SetTraffic { pipeline, weight } => {
                let request = proto::SetTrafficRequest {
                    pipeline: pipeline.clone(),
                    weight: *weight,
                    dedup,
                    ..Default::default()
                };
                let reply = service.set_traffic(request).await;
                reply.map(|reply| Outcome::Done(Some(reply.into_inner().version)))
            }
        };
        answer.unwrap_or_else(|status| refused(act, &status))
    }

    /// What a status shows of this history.
    fn view(&self, status: proto::StatusResponse) -> View {
        let mut pipelines: BTreeMap<String, Vec<(u64, u64)>> = BTreeMap::new();
        let mut shares: BTreeMap<String, BTreeMap<u64, u32>> = BTreeMap::new();
        for deployment in status
            .deployments
            .into_iter()
            .filter_map(|status| status.deployment)
        {
            let phase = deployment.phase();
            // It only finishes what it has.
            if phase == Phase::Retiring {
                continue;
            }
            let Some(spec) = deployment.spec.filter(|spec| spec.name.starts_with(&self.prefix)) else {
                continue;
            };
            let argv = spec.source.map(|source| source.argv).unwrap_or_default();
            let mark = argv.first().and_then(|mark| mark.parse().ok()).unwrap_or(0);
            let shares = shares.entry(spec.name.clone()).or_default();
            if matches!(phase, Phase::Canary | Phase::Serving) {
                shares.insert(mark, deployment.weight);
            }
            pipelines
                .entry(spec.name)
                .or_default()
                .push((deployment.revision, mark));
        }
        pipelines
            .values_mut()
            .for_each(|revisions| revisions.sort_unstable());
        let nodes = status.nodes.into_iter().filter_map(|status| status.node);
        let own = nodes.filter(|node| node.id.starts_with(&self.prefix));
        View {
            version: status.version,
            pipelines,
            shares,
            nodes: own.map(|node| (node.id, node.incarnation)).collect(),
        }
    }
}

/// A pipeline with a revision that serves and a canary.
fn with_a_canary(view: &View) -> Option<String> {
    let mut shares = view.shares.iter();
    shares
        .find(|(_, shares)| shares.len() > 1)
        .map(|(pipeline, _)| pipeline.clone())
}

fn refused(act: &Act, status: &Status) -> Outcome {
    match status.code() {
        // There is no canary now, or no rollout: the code does not tell which.
        Code::FailedPrecondition if matches!(act, Act::SetTraffic { .. }) => Outcome::Refused(No::NotCanary),
        Code::NotFound => Outcome::Refused(No::UnknownPipeline),
        Code::Aborted => Outcome::Refused(No::StaleIncarnation),
        Code::FailedPrecondition | Code::InvalidArgument | Code::Internal => Outcome::Refused(No::Other),
        _ => Outcome::Unknown,
    }
}
