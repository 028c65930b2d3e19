use mosec_types::spec::{PythonSource, RouteSpec};
use mosec_types::{
    Incarnation, NodeId, PipelineName, PipelineSpec, ReplicaId, Revision, StageIndex, StageKey, StageSpec,
};

use super::*;

fn spec(name: &str) -> PipelineSpec {
    let stage = |name: &str, replicas| StageSpec {
        replicas,
        ..StageSpec::new(name, "server", "Stage")
    };
    let source = PythonSource {
        dir: "/srv".into(),
        ..Default::default()
    };
    PipelineSpec {
        routes: vec![RouteSpec {
            path: format!("/{name}"),
            stages: vec![StageIndex(0), StageIndex(1)],
        }],
        ..PipelineSpec::new(
            PipelineName::new(name).unwrap(),
            source,
            vec![stage("decode", 1), stage("find", 2)],
        )
    }
}

fn placement(stage: u16, replica: u32, node: &str) -> Placement {
    Placement {
        stage: StageIndex(stage),
        replica: ReplicaId(replica),
        node: NodeId::new(node).unwrap(),
        gpus: Vec::new(),
    }
}

fn worker(revision: u64, stage: u16, replica: u32, state: WorkerState) -> WorkerStatus {
    WorkerStatus {
        stage: StageKey {
            revision: Revision(revision),
            stage: StageIndex(stage),
        },
        replica: ReplicaId(replica),
        state,
        pid: Some(4000 + replica),
        restarts: 0,
        failed_starts: 0,
        last_error: None,
    }
}

fn node(id: &str, health: NodeHealth, workers: &[WorkerStatus]) -> proto::NodeStatus {
    let node = Node {
        id: NodeId::new(id).unwrap(),
        incarnation: Incarnation(17),
        address: "127.0.0.1:7443".into(),
        health,
        labels: BTreeMap::from([("gpu".into(), "h200".into())]),
        draining: false,
        capacity: Default::default(),
        build: Some("0.1.0".into()),
    };
    let silent_ms = (health == NodeHealth::Up).then_some(420);
    proto::NodeStatus {
        node: Some((&node).into()),
        silent_ms,
        workers: workers.iter().map(Into::into).collect(),
        ..Default::default()
    }
}

fn deployment(
    name: &str,
    revision: u64,
    phase: Phase,
    placements: Vec<Placement>,
) -> proto::DeploymentStatus {
    let deployment = Deployment::new(
        Revision(revision),
        std::sync::Arc::new(spec(name)),
        phase,
        placements,
    );
    proto::DeploymentStatus {
        deployment: Some((&deployment).into()),
        unplaced: Vec::new(),
        ..Default::default()
    }
}

const TRACEBACK: &str =
    "Traceback (most recent call last):\n  File \"server.py\", line 3\nValueError: no model\n";

/// Two revisions on two nodes, of which one is silent; one worker cannot start, one revision has failed.
pub(crate) fn response() -> proto::StatusResponse {
    let mut broken = worker(9, 1, 1, WorkerState::BackOff);
    (broken.failed_starts, broken.restarts, broken.pid) = (2, 2, None);
    broken.last_error = Some(TRACEBACK.into());
    let failed = Phase::Failed {
        reason: format!("stage find replica 1 on node a failed to start:\n{TRACEBACK}"),
    };
    let mut starting = deployment(
        "ocr",
        9,
        Phase::Starting,
        vec![placement(1, 2, "b"), placement(1, 1, "a"), placement(0, 1, "a")],
    );
    starting
        .unplaced
        .push("stage find replica 3 fits no node: b is suspect".into());
    proto::StatusResponse {
        nodes: vec![
            node(
                "a",
                NodeHealth::Up,
                &[worker(9, 0, 1, WorkerState::Ready), broken],
            ),
            node("b", NodeHealth::Suspect, &[worker(9, 1, 2, WorkerState::Ready)]),
        ],
        deployments: vec![starting, deployment("asr", 5, failed, vec![])],
        members: vec![
            proto::MemberStatus {
                id: 1,
                address: "127.0.0.1:7400".into(),
                matched: Some(12),
                silent_ms: None,
                is_lost: false,
            },
            proto::MemberStatus {
                id: 2,
                address: "127.0.0.1:7401".into(),
                matched: None,
                silent_ms: Some(5230),
                is_lost: true,
            },
        ],
        leader: 1,
        term: 3,
        version: 12,
        cluster_id: "test".into(),
        gateways: vec![
            proto::GatewayStatus {
                name: "edge-1".into(),
                build: "0.1.0".into(),
                silent_ms: 640,
                is_lost: false,
            },
            proto::GatewayStatus {
                name: "edge-2".into(),
                build: "0.1.0".into(),
                silent_ms: 61_200,
                is_lost: true,
            },
        ],
    }
}

fn report() -> Report {
    Report::try_from(response()).unwrap()
}

#[test]
fn replicas_have_the_state_their_node_tells_while_it_is_up() {
    let report = report();
    assert_eq!(
        report
            .pipelines
            .iter()
            .map(|revision| revision.revision)
            .collect::<Vec<_>>(),
        [5, 9]
    );
    let ocr = report.revision(9).unwrap();
    let states: Vec<_> = ocr
        .replicas
        .iter()
        .map(|r| (r.stage.as_str(), r.replica, r.state))
        .collect();
    assert_eq!(
        states,
        [
            ("decode", 1, "ready"),
            ("find", 1, "back-off"),
            ("find", 2, "unknown")
        ]
    );
    assert_eq!(ocr.readiness(), "decode 1/1  find 0/2");
    assert_eq!(
        ocr.missing(),
        [
            "stage find replica 1 on node a is back-off, started 3 times: ValueError: no model",
            "stage find replica 2 on node b is unknown",
            "stage find replica 3 fits no node: b is suspect"
        ]
    );
    assert_eq!(report.revision(1), None);
}

#[test]
fn a_worker_of_another_revision_is_not_taken_for_a_replica() {
    let mut response = response();
    response.nodes[0]
        .workers
        .iter_mut()
        .for_each(|worker| worker.revision = 8);
    let report = Report::try_from(response).unwrap();
    assert_eq!(report.revision(9).unwrap().replicas[0].state, "placed");
}

#[test]
fn what_cannot_be_understood_is_an_error() {
    let mut response = response();
    response.deployments[0].deployment.as_mut().unwrap().phase = 99;
    assert!(
        Report::try_from(response)
            .unwrap_err()
            .to_string()
            .contains("phase")
    );
}

#[test]
fn the_tables_are_these() {
    let expected = r#"cluster test  version 12  leader 1  term 3

PIPELINE  REVISION  PHASE     WEIGHT  READY                 ROUTES  REASON
asr       5         failed    0%      decode 0/1  find 0/2  /asr    ValueError: no model
ocr       9         starting  0%      decode 1/1  find 0/2  /ocr    -

PIPELINE  REVISION  STAGE   REPLICA  NODE  STATE     PID   RESTARTS  LAST ERROR
ocr       9         decode  1        a     ready     4001  0         -
ocr       9         find    1        a     back-off  -     2         ValueError: no model
ocr       9         find    2        b     unknown   4002  0         -

NODE  HEALTH   ADDRESS         HEARD     LABELS
a     up       127.0.0.1:7443  0.4s ago  gpu=h200
b     suspect  127.0.0.1:7443  -         gpu=h200

GATEWAY  HEALTH  HEARD      BUILD
edge-1   up      0.6s ago   0.1.0
edge-2   lost    61.2s ago  0.1.0

MEMBER  HEALTH  ADDRESS         HEARD     ROLE      LOG
1       up      127.0.0.1:7400  -         leader    12
2       lost    127.0.0.1:7401  5.2s ago  follower  -

asr revision 5 failed:
    stage find replica 1 on node a failed to start:
    Traceback (most recent call last):
      File "server.py", line 3
    ValueError: no model

ocr revision 9: stage find replica 3 fits no node: b is suspect

ocr revision 9: stage find replica 1 on node a failed to start 2 times:
    Traceback (most recent call last):
      File "server.py", line 3
    ValueError: no model
"#;
    let found = table::render(&report());
    assert_eq!(found, expected, "found:\n{found}");
}

#[test]
fn a_node_that_cannot_be_reached_is_named_with_from_where_and_why() {
    let mut response = response();
    let from = |gateway: &str| proto::UnreachableFrom {
        from: format!("gateway/{gateway}"),
        address: "127.0.0.1:7443".into(),
        cause: "no answer within 3s".into(),
    };
    response.nodes[0].unreachable = vec![from("x"), from("y")];
    response.nodes[0].unreachable_from = 5;
    let report = Report::try_from(response).unwrap();
    let lines = "
node a is unreachable from gateway x: 127.0.0.1:7443: no answer within 3s
node a is unreachable from gateway y: 127.0.0.1:7443: no answer within 3s
node a is unreachable from 3 more
";
    for text in [table::render(&report), nodes::render(&report.nodes)] {
        assert!(text.contains(lines) && text.contains("up, unreachable"), "{text}");
    }
    let of_revision = |number| report.revision(number).unwrap();
    assert_eq!(of_revision(9).missing().len(), 5, "it has replicas there");
    assert!(of_revision(5).unreachable.is_empty(), "and this one has none");
    let json = serde_json::to_value(&report.nodes[0]).unwrap();
    let expected = serde_json::json!({
        "node": "a", "from": "gateway/x", "address": "127.0.0.1:7443", "cause": "no answer within 3s",
    });
    assert_eq!(json["unreachable"][0], expected);
}

#[test]
fn an_empty_cluster_has_something_to_say() {
    let report = Report::try_from(proto::StatusResponse {
        cluster_id: "new".into(),
        ..Default::default()
    })
    .unwrap();
    let expected = "cluster new  version 0  leader none  term 0\n\nno pipelines\n\nno nodes\n";
    assert_eq!(table::render(&report), expected);
}

#[test]
fn an_error_cannot_reach_into_the_terminal() {
    let mut response = response();
    response.nodes[0].workers[0].last_error = Some(format!("\x1b[2J{}\nsecond line", "x".repeat(200)));
    let text = table::render(&Report::try_from(response).unwrap());
    assert!(
        !text.contains('\x1b') && text.contains("xxx...") && !text.contains("second line"),
        "{text}"
    );
}

#[test]
fn time_alone_changes_nothing_that_is_watched() {
    let mut later = response();
    for member in &mut later.members {
        member.silent_ms = member.silent_ms.map(|millis| millis + 1000);
    }
    for node in &mut later.nodes {
        node.silent_ms = node.silent_ms.map(|millis| millis + 1000);
    }
    for gateway in &mut later.gateways {
        gateway.silent_ms += 1000;
    }
    let later = Report::try_from(later).unwrap();
    assert_ne!(report(), later);
    assert_eq!(report().ageless(), later.ageless());
}

#[test]
fn the_json_is_this_object() {
    let json = serde_json::to_value(report()).unwrap();
    let keys = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(
        keys(&json),
        [
            "cluster",
            "gateways",
            "leader",
            "members",
            "nodes",
            "pipelines",
            "term",
            "version"
        ]
    );
    let expected = serde_json::json!({
        "name": "ocr",
        "revision": 9,
        "phase": "starting",
        "reason": null,
        "routes": ["/ocr"],
        "stages": [
            {"name": "decode", "replicas": 1, "goal": 1, "ready": 1},
            {"name": "find", "replicas": 2, "goal": 2, "ready": 0},
        ],
        "replicas": [
            {
                "stage": "decode", "replica": 1, "node": "a", "state": "ready", "pid": 4001,
                "gpus": [], "restarts": 0, "failed_starts": 0, "last_error": null,
            },
            {
                "stage": "find", "replica": 1, "node": "a", "state": "back-off", "pid": null,
                "gpus": [], "restarts": 2, "failed_starts": 2, "last_error": TRACEBACK,
            },
            {
                "stage": "find", "replica": 2, "node": "b", "state": "unknown", "pid": 4002,
                "gpus": [], "restarts": 0, "failed_starts": 0, "last_error": null,
            },
        ],
        "unplaced": ["stage find replica 3 fits no node: b is suspect"],
        "unreachable": [],
        "weight": 0,
        "waits_for": null,
        "waits_for_promotion": false,
        "waits_for_requests": false,
        "traffic": {"requests": 0, "errors": 0, "slow": 0},
    });
    assert_eq!(json["pipelines"][1], expected);
    let node = serde_json::json!({
        "name": "a", "health": "up", "address": "127.0.0.1:7443", "incarnation": 17,
        "labels": {"gpu": "h200"}, "silent_ms": 420, "draining": false, "replicas": 2, "leaving": 0,
        "gpus": [], "cpus": 0.0, "memory": 0, "build": "0.1.0",
        "unreachable": [], "unreachable_from": 0,
    });
    assert_eq!(json["nodes"][0], node);
    let member = serde_json::json!({"id": 1, "address": "127.0.0.1:7400", "leader": true, "matched": 12, "silent_ms": null, "health": "up"});
    assert_eq!(json["members"][0], member);
    let gateway =
        serde_json::json!({"name": "edge-2", "health": "lost", "silent_ms": 61_200, "build": "0.1.0"});
    assert_eq!(json["gateways"][1], gateway);
}
