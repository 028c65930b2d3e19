use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use mosec_types::rollout::{Bounds, CanarySpec, HeaderMatch};
use mosec_types::spec::{Batching, Delivery, PythonSource, RouteSpec, Spread};
use mosec_types::{PipelineName, RolloutSpec, StageIndex, StageSpec};
use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Result<PipelineSpec, ManifestError> {
    Manifest::parse(text, "p.yaml", Path::new("/srv/ocr")).map(|manifest| manifest.spec)
}

/// Every mistake, one line each.
fn problems(text: &str) -> Vec<String> {
    parse(text)
        .map(|spec| format!("{spec:?}"))
        .unwrap_err()
        .to_string()
        .lines()
        .map(str::to_owned)
        .collect()
}

const SMALLEST: &str = "pipeline: echo\nstages:\n  - name: only\n    worker: server:Echo\n";

#[test]
fn defaults_are_mosecs() {
    let spec = parse(SMALLEST).unwrap();
    let stage = StageSpec {
        name: "only".into(),
        module: "server".into(),
        class: "Echo".into(),
        replicas: 1,
        max_batch_size: 1,
        max_wait: Duration::from_millis(10),
        batching: Default::default(),
        timeout: Duration::from_secs(3),
        env: Vec::new(),
        node_labels: BTreeMap::new(),
        delivery: Delivery::Retry,
        attempts: 3,
        mime: "application/json".into(),
        streaming: false,
        request_headers: Vec::new(),
        needs: Default::default(),
        spread: Vec::new(),
        anti_affinity: Vec::new(),
    };
    let expected = PipelineSpec {
        name: PipelineName::new("echo").unwrap(),
        source: PythonSource {
            dir: "/srv/ocr".into(),
            ..Default::default()
        },
        stages: vec![stage],
        routes: vec![RouteSpec {
            path: "/inference".into(),
            stages: vec![StageIndex(0)],
        }],
        timeout: Duration::from_secs(3),
        capacity: 1024,
        max_request_bytes: 10 << 20,
        openapi: None,
        rollout: Default::default(),
    };
    assert_eq!(spec, expected);
}

#[test]
fn every_key_is_read() {
    let spec = parse(
        r#"
pipeline: ocr
source: code
python: .venv/bin/python
requirements: [numpy>=2, "--no-index"]
timeout: 30s
capacity: 64
max_request_size: 1.5MiB
stages:
  - name: decode
    worker: pkg.server:Outer.Decode
    replicas: 2
    max_batch_size: 8
    max_wait: 0ms
    batching: adaptive
    timeout: 1.5s
    env: {THREADS: 04, FAST: true, EMPTY: "", NAME: yes}
    labels: {gpu: h200, zone: 1}
    delivery: at_most_once
    attempts: 1
    spread: {by: zone}
  - name: find
    worker: server:Find
    replicas: 2
    spread: [{by: node, max: 1}, {by: rack}]
    anti_affinity: [decode]
    env:
      - {CUDA_VISIBLE_DEVICES: 0}
      - {CUDA_VISIBLE_DEVICES: "1"}
routes:
  - path: /v1/find
    stages: [find]
  - path: /v1/all
"#,
    )
    .unwrap();
    let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|&(key, value)| (key.into(), value.into()))
            .collect()
    };
    let (decode, find) = (&spec.stages[0], &spec.stages[1]);
    let env = map(&[
        ("THREADS", "04"),
        ("FAST", "true"),
        ("EMPTY", ""),
        ("NAME", "yes"),
    ]);
    assert_eq!(spec.source.dir, "/srv/ocr/code");
    assert_eq!(spec.source.python.as_deref(), Some("/srv/ocr/.venv/bin/python"));
    assert_eq!(spec.source.requirements, ["numpy>=2", "--no-index"]);
    assert_eq!(
        (spec.timeout, spec.capacity, spec.max_request_bytes),
        (Duration::from_secs(30), 64, 3 << 19)
    );
    assert_eq!(
        (decode.module.as_str(), decode.class.as_str()),
        ("pkg.server", "Outer.Decode")
    );
    assert_eq!(
        (decode.replicas, decode.max_batch_size, decode.attempts),
        (2, 8, 1)
    );
    assert_eq!(
        (decode.max_wait, decode.timeout),
        (Duration::ZERO, Duration::from_millis(1500))
    );
    assert_eq!(decode.env, [env.clone(), env]);
    assert_eq!(decode.node_labels, map(&[("gpu", "h200"), ("zone", "1")]));
    assert_eq!(decode.delivery, Delivery::AtMostOnce);
    let by = |label: &str, max| Spread {
        by: label.into(),
        max,
    };
    assert_eq!(decode.spread, [by("zone", None)]);
    assert_eq!(find.spread, [by("node", Some(1)), by("rack", None)]);
    assert_eq!(
        (&decode.anti_affinity[..], &find.anti_affinity[..]),
        (&[][..], &[StageIndex(0)][..])
    );
    assert_eq!(
        (decode.batching, find.batching),
        (Batching::Adaptive, Batching::Window)
    );
    assert_eq!(
        find.env,
        [
            map(&[("CUDA_VISIBLE_DEVICES", "0")]),
            map(&[("CUDA_VISIBLE_DEVICES", "1")])
        ]
    );
    let routes: Vec<_> = spec
        .routes
        .iter()
        .map(|route| (route.path.as_str(), route.stages.clone()))
        .collect();
    assert_eq!(
        routes,
        [
            ("/v1/find", vec![StageIndex(1)]),
            ("/v1/all", vec![StageIndex(0), StageIndex(1)])
        ]
    );
}

/// An editor that goes by the schema and the command that reads manifests know the same keys.
#[test]
fn the_schema_has_all_keys_and_no_others() {
    let schema: serde_json::Value = serde_json::from_str(SCHEMA).unwrap();
    let objects: [(&str, &[&str]); 8] = [
        ("", KEYS),
        ("/properties/stages/items", draft::STAGE_KEYS),
        ("/properties/routes/items", draft::ROUTE_KEYS),
        ("/$defs/spread", draft::SPREAD_KEYS),
        ("/properties/rollout", rollout::KEYS),
        ("/properties/rollout/properties/canary", rollout::CANARY_KEYS),
        (
            "/properties/rollout/properties/canary/properties/header",
            rollout::HEADER_KEYS,
        ),
        ("/properties/rollout/properties/bounds", rollout::BOUNDS_KEYS),
    ];
    for (pointer, keys) in objects {
        let object = schema.pointer(pointer).unwrap();
        let mut known: Vec<_> = object["properties"]
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        let mut keys = keys.to_vec();
        known.sort_unstable();
        keys.sort_unstable();
        assert_eq!(known, keys, "{pointer}");
        assert_eq!(object["additionalProperties"], false, "{pointer}");
    }
}

#[test]
fn rollouts_and_needs_are_read() {
    let text = format!(
        "{SMALLEST}    gpus: 0.25
    gpu_memory: 10GiB
    cpus: 1.5
    memory: 2GiB
rollout:
  max_parallel: 2
  progress_deadline: 10m
  canary:
    replicas: all
    weight: 5%
    header: {{name: X-Canary, value: \"1\"}}
    auto_promote: true
  bounds: {{max_error_rate: 0.5%, max_p99: 250ms, min_requests: 200}}
"
    );
    let spec = parse(&text).unwrap();
    let needs = mosec_types::Needs {
        gpus: 25,
        gpu_memory: 10 << 30,
        cpus: 1500,
        memory: 2 << 30,
    };
    assert_eq!(spec.stages[0].needs, needs);
    let canary = CanarySpec {
        replicas: 0,
        weight: 5,
        header: Some(HeaderMatch {
            name: "x-canary".into(),
            value: "1".into(),
        }),
        auto_promote: true,
    };
    let rollout = RolloutSpec {
        max_parallel: 2,
        min_healthy_time: Duration::from_secs(10),
        progress_deadline: Some(Duration::from_secs(600)),
        canary: Some(canary),
        bounds: Bounds {
            max_errors: Some(50),
            max_p99: Some(Duration::from_millis(250)),
            min_requests: 200,
        },
    };
    assert_eq!(spec.rollout, rollout);
    let canary = parse(&format!(
        "{SMALLEST}rollout: {{canary: {{}}, min_healthy_time: 0}}\n"
    ))
    .unwrap();
    let CanarySpec { replicas, weight, .. } = canary.rollout.canary.unwrap();
    assert_eq!((replicas, weight), (1, 10));
    assert_eq!(canary.rollout.min_healthy_time, Duration::ZERO);
}

#[test]
fn each_mistake_is_named_with_its_place() {
    // Appended to the smallest manifest: as a key of its stage, or of the pipeline.
    let cases = [
        (
            "    spread: zone\n",
            "p.yaml:5:13: stages[0].spread: expected a map as {by: zone}, or a list of them, found",
        ),
        (
            "    spread: {max: 1}\n",
            "p.yaml:5:13: stages[0].spread.by: missing, expected a label of nodes, as zone, or node for their names",
        ),
        (
            "    spread: [{by: zone}, {by: node, max: 0}]\n",
            "p.yaml:5:42: stages[0].spread[1].max: expected 1 to 4096, found 0",
        ),
        (
            "    anti_affinity: [onyl]\n",
            "p.yaml:5:21: stages[0].anti_affinity[0]: no stage \"onyl\", did you mean \"only\"? (the stages are only)",
        ),
        (
            "    anti_affinity: [only]\n",
            "p.yaml:5:20: stages[0].anti_affinity: expected other stages; `spread: {by: node, max: 1}` keeps",
        ),
        (
            "    replica: 2\n",
            "p.yaml:5:5: stages[0].replica: unknown key, did you mean \"replicas\"? (expected one of",
        ),
        (
            "    gpu: 2\n",
            "p.yaml:5:5: stages[0].gpu: unknown key, did you mean \"gpus\"? (expected one of name, worker, replicas,",
        ),
        (
            "    gpus: 1.5\n",
            "p.yaml:5:11: stages[0].gpus: expected a part of one GPU, as 0.25, or 1 to 32 whole ones, found 1.5",
        ),
        (
            "    gpus: many\n",
            "p.yaml:5:11: stages[0].gpus: expected a number with at most 2 decimals, as 1 or 0.5, found \"many\"",
        ),
        (
            "    gpu_memory: 40GiB\n",
            "p.yaml:5:17: stages[0].gpu_memory: expected gpus, too",
        ),
        (
            "rollout: {canary: {weight: 10}}\n",
            "p.yaml:5:28: rollout.canary.weight: expected a share as 10% or 0.5%, found the number 10",
        ),
        (
            "rollout: {canary: {weight: 0.5%}}\n",
            "rollout.canary.weight: expected whole percents",
        ),
        (
            "rollout: {canary: {weight: 101%}}\n",
            "p.yaml:5:28: rollout.canary.weight: expected 0% to 100%, found 101%",
        ),
        (
            "rollout: {max_parallel: 0}\n",
            "p.yaml:5:25: rollout.max_parallel: expected a whole number above 0, or all",
        ),
        (
            "rollout: {bounds: {max_error: 1%}}\n",
            "p.yaml:5:20: rollout.bounds.max_error: unknown key, did you mean \"max_error_rate\"?",
        ),
        (
            "rollout: {canary: {auto_promote: maybe}}\n",
            "rollout.canary.auto_promote: expected true or false, found \"maybe\"",
        ),
        (
            "rotes: []\n",
            "p.yaml:5:1: rotes: unknown key, did you mean \"routes\"?",
        ),
        (
            "    replicas: two\n",
            "p.yaml:5:15: stages[0].replicas: expected a whole number, found \"two\"",
        ),
        (
            "    replicas: 1.5\n",
            "p.yaml:5:15: stages[0].replicas: expected a whole number, found the number 1.5",
        ),
        (
            "    replicas: -1\n",
            "p.yaml:5:15: stages[0].replicas: expected a whole number from 0 to",
        ),
        (
            "    replicas: 0\n",
            "p.yaml:5:15: stages[0].replicas: expected 1 to 4096, found 0",
        ),
        (
            "    replicas:\n",
            "stages[0].replicas: expected a whole number, found nothing",
        ),
        (
            "    max_wait: 10\n",
            "p.yaml:5:15: stages[0].max_wait: expected a time as 10ms, 1.5s, 2m or 1h, found the number 10",
        ),
        (
            "    max_wait: 1ns\n",
            "p.yaml:5:15: stages[0].max_wait: expected a time as 10ms, 1.5s, 2m or 1h, found \"1ns\"",
        ),
        (
            "    timeout: 0s\n",
            "p.yaml:5:14: stages[0].timeout: expected a time above zero",
        ),
        (
            "    delivery: once\n",
            "p.yaml:5:15: stages[0].delivery: expected retry or at_most_once, found \"once\"",
        ),
        (
            "    batching: Adaptive\n",
            "p.yaml:5:15: stages[0].batching: expected window or adaptive, found \"Adaptive\"",
        ),
        (
            "    env: A=1\n",
            "p.yaml:5:10: stages[0].env: expected a map of variables, or a list with one map",
        ),
        (
            "    env: [{A: 1}, {A: 2}]\n",
            "p.yaml:5:10: stages[0].env: expected one set for each of the 1 replicas, found 2",
        ),
        (
            "    env: {A: [1]}\n",
            "p.yaml:5:14: stages[0].env.A: expected a text, found a list",
        ),
        (
            "    env: {A=B: 1}\n",
            "p.yaml:5:11: stages[0].env.A=B: expected a name without '='",
        ),
        (
            "    labels: [a]\n",
            "p.yaml:5:13: stages[0].labels: expected a map of texts, found a list",
        ),
        (
            "max_request_size: 10 megs\n",
            "p.yaml:5:19: max_request_size: expected a size as 512KiB, 10MiB or a number",
        ),
        (
            "max_request_size: 0\n",
            "p.yaml:5:19: max_request_size: expected at least 1",
        ),
        (
            "max_request_size: 65MiB\n",
            "p.yaml:5:19: max_request_size: expected at most 64 MiB, which is what a link of the cluster carries, found \
             68157440 bytes",
        ),
        (
            "routes:\n  - stages: [only]\n",
            "p.yaml:6:5: routes[0].path: missing, expected the path, as /inference",
        ),
        (
            "routes:\n  - path: inference\n",
            "p.yaml:6:11: routes[0].path: expected a path that starts with '/'",
        ),
        (
            "routes:\n  - path: /metrics\n",
            "p.yaml:6:11: routes[0].path: '/metrics' is reserved",
        ),
        (
            "routes:\n  - path: /x\n    stages: [onyl]\n",
            "p.yaml:7:14: routes[0].stages[0]: no stage \"onyl\", did you mean \"only\"? (the stages are only)",
        ),
        (
            "routes:\n  - path: /x\n    stages: [only, only]\n",
            "p.yaml:7:20: routes[0].stages[1]: the stage \"only\" comes twice",
        ),
        (
            "routes: /x\n",
            "p.yaml:5:9: routes: expected a list, found \"/x\"",
        ),
        (
            "    name: again\n",
            "p.yaml:5:5: stages[0].name: the key comes twice",
        ),
        (
            "    labels: {a: 1, b: 2, a: 3}\n",
            "p.yaml:5:26: stages[0].labels.a: the key comes twice",
        ),
        (
            "  - name: only\n    worker: server:Echo\n",
            "p.yaml:5:11: stages[1].name: the name \"only\" is taken",
        ),
        (
            "  - name: b\n    worker: server.Echo\n",
            "p.yaml:6:13: stages[1].worker: expected module:Class, as server:Preprocess, found",
        ),
        (
            "  - name: 7\n    worker: a:B\n",
            "p.yaml:5:11: stages[1].name: expected a text (in quotes where it looks like a number)",
        ),
        (
            "  - b\n",
            "p.yaml:5:5: stages[1]: expected a map with the keys name, worker,",
        ),
    ];
    for (added, expected) in cases {
        let found = problems(&format!("{SMALLEST}{added}"));
        assert!(
            found.len() == 1 && found[0].contains(expected),
            "{added:?}\nexpected {expected}\nfound    {found:#?}"
        );
    }
}

#[test]
fn what_is_missing_is_named() {
    assert_eq!(
        problems(""),
        [format!("p.yaml: empty, expected the keys {}", KEYS.join(", "))]
    );
    assert_eq!(
        problems("timeout: 1s\n"),
        [
            "p.yaml:1:1: pipeline: missing, expected the pipeline's name",
            "p.yaml:1:1: stages: missing, expected a list of stages"
        ]
    );
    assert_eq!(
        problems("pipeline: x\nstages: []\n"),
        ["p.yaml:2:9: stages: expected 1 to 256 stages, found 0"]
    );
    assert_eq!(
        problems("- a\n"),
        [format!(
            "p.yaml:1:1: expected a map with the keys {}, found a list",
            KEYS.join(", ")
        )]
    );
    assert!(
        problems("pipeline: Big Name\nstages: []\n")[0]
            .contains("p.yaml:1:11: pipeline: invalid pipeline name")
    );
}

#[test]
fn all_mistakes_show_at_once_in_the_order_of_the_file() {
    let text = "stages:\n  - name: a\n    wroker: m:C\n    replicas: x\n  - name: b\n    worker: c\ntimeout: 3\npipeline: ''\n";
    let found = problems(text);
    let places: Vec<_> = found
        .iter()
        .map(|line| line.split(": ").nth(1).unwrap())
        .collect();
    assert_eq!(
        places,
        [
            "stages[0].worker",
            "stages[0].wroker",
            "stages[0].replicas",
            "stages[1].worker",
            "timeout",
            "pipeline"
        ]
    );
}

/// What is wrong with values, which is found once they are read, shows together with what cannot be read.
#[test]
fn no_mistake_hides_another() {
    let text = "\
pipeline: x
capacity: 0
stages:
  - name: a
    worker: m:C
    replicas: 0
    worker: m:C
  - name: a
    worker: m:D
    timeout: 0s
    anti_affinity: [b]
  - worker: m:E
    attempts: 0
  - name: c
    worker: m.F
    replicas: two
    env: [{A: 1}, {A: 2}]
    gpus: many
    gpu_memory: 1GiB
routes:
  - {path: inference}
  - {stages: [a]}
  - {path: /x, stages: [a, gone]}
  - {path: /x}
";
    let found = problems(text);
    let found: Vec<_> = found
        .iter()
        .map(|line| line.strip_prefix("p.yaml:").unwrap())
        .map(|line| line.splitn(3, ": ").take(2).collect::<Vec<_>>().join(" "))
        .collect();
    let expected = [
        "2:11 capacity",
        "6:15 stages[0].replicas",
        "7:5 stages[0].worker",
        "8:11 stages[1].name",
        "10:14 stages[1].timeout",
        "12:5 stages[2].name",
        "13:15 stages[2].attempts",
        "15:13 stages[3].worker",
        "16:15 stages[3].replicas",
        "18:11 stages[3].gpus",
        "21:12 routes[0].path",
        "22:5 routes[1].path",
        "24:12 routes[3].path",
    ];
    assert_eq!(found, expected);
    // With all stages known, one that is not among them is a mistake of its own.
    let text = "stages:\n  - {name: a, worker: m:C, replicas: 0}\nroutes:\n  - {path: /x, stages: [gone]}\n";
    let keys: Vec<_> = problems(text)
        .iter()
        .map(|line| line.split(": ").nth(1).unwrap().to_owned())
        .collect();
    assert_eq!(keys, ["pipeline", "stages[0].replicas", "routes[0].stages[0]"]);
}

#[test]
fn workers_are_refused_at_their_place() {
    let manifest = Manifest::parse(SMALLEST, "p.yaml", Path::new("/srv")).unwrap();
    assert_eq!(manifest.workers(), ["server:Echo"]);
    let error = manifest.refuse("stages[0].worker", "there is no module server");
    assert_eq!(
        error.to_string(),
        "p.yaml:4:13: stages[0].worker: there is no module server"
    );
    let error = manifest.refuse_all([
        ("stages[0].worker".to_owned(), "no class".to_owned()),
        ("stages[0].name".to_owned(), "no name".to_owned()),
    ]);
    assert_eq!(
        error.to_string(),
        "p.yaml:3:11: stages[0].name: no name\np.yaml:4:13: stages[0].worker: no class"
    );
}

#[test]
fn the_examples_are_valid() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut checked = 0;
    for entry in std::fs::read_dir(&examples).unwrap() {
        let path = entry.unwrap().path().join("pipeline.yaml");
        if let Ok(text) = std::fs::read_to_string(&path) {
            Manifest::parse(&text, &path.to_string_lossy(), Path::new("/srv"))
                .unwrap_or_else(|error| panic!("{error}"));
            checked += 1;
        }
    }
    assert!(checked > 0, "no manifest in {}", examples.display());
}

proptest! {
    #[test]
    fn no_text_panics(text in "(\\PC|\n){0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn no_edit_of_a_manifest_panics(at in 0usize..SMALLEST.len(), text in "[-a-z:\\[\\]{}#&*!|>'\"% \n]{0,4}") {
        let mut edited = SMALLEST.to_owned();
        edited.insert_str(at, &text);
        if let Err(error) = parse(&edited) {
            prop_assert!(!error.problems.is_empty());
        }
    }
}

#[test]
fn requirements_are_a_file_or_lines() {
    let with = |value: &str| format!("{SMALLEST}requirements: {value}\n");
    let parsed = Manifest::parse(&with("requirements.txt"), "p.yaml", Path::new("/srv")).unwrap();
    assert_eq!(parsed.requirements_file.as_deref(), Some("requirements.txt"));
    assert_eq!(parsed.spec.source.requirements, [""; 0]);
    let parsed = Manifest::parse(&with("[a, b==1]"), "p.yaml", Path::new("/srv")).unwrap();
    assert_eq!(
        (parsed.requirements_file, parsed.spec.source.requirements.len()),
        (None, 2)
    );
    for (value, problem) in [
        (
            "[a, -r more.txt]",
            "p.yaml:5:19: requirements[1]: expected a package that an index has",
        ),
        (
            "{a: 1}",
            "p.yaml:5:15: requirements: expected a file as requirements.txt, or a list",
        ),
        ("7", "p.yaml:5:15: requirements: expected a text"),
    ] {
        let found = problems(&with(value));
        assert!(found.len() == 1 && found[0].starts_with(problem), "{found:?}");
    }
}
