//! Everything about one pipeline or one node, as `mosectl describe` gives it.

mod node;
mod pipeline;
mod spec;

use mosec_wire::control::proto;

pub(crate) use self::node::NodeDescription;
pub(crate) use self::pipeline::PipelineDescription;
use super::audit::AuditReport;

/// Most events that are shown: what happened lately, without pushing the rest off the screen.
const MAX_EVENTS: usize = 10;

/// The last entries of the trail that name something.
fn events(audit: Vec<proto::AuditRecord>, name: &str) -> Vec<AuditReport> {
    let names_it = |record: &proto::AuditRecord| {
        let by = record.by.split('/').any(|part| part == name);
        by || record.action.split_whitespace().any(|word| word == name)
    };
    let mut named: Vec<_> = audit
        .into_iter()
        .filter(names_it)
        .map(AuditReport::from)
        .collect();
    named.split_off(named.len().saturating_sub(MAX_EVENTS))
}

/// In the largest unit that leaves it a number of few digits, as `80GiB`.
fn size(bytes: u64) -> String {
    for (unit, name) in [(1u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
        if bytes >= unit {
            let tenths = (bytes as f64 / unit as f64 * 10.0).round() / 10.0;
            return format!("{tenths}{name}");
        }
    }
    format!("{bytes}B")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use mosec_types::{NodeId, PipelineName};

    use super::*;
    use crate::report::tests::response;

    fn record(index: u64, by: &str, action: &str) -> proto::AuditRecord {
        proto::AuditRecord {
            index,
            at_unix_ms: 1_795_628_100_123,
            by: by.into(),
            action: action.into(),
            refusal: String::new(),
        }
    }

    fn trail() -> Vec<proto::AuditRecord> {
        vec![
            record(3, "agent/a", "join with token 1"),
            record(5, "ann", "deploy asr (stages: 2, replicas: 3)"),
            record(9, "ann", "deploy ocr (stages: 2, replicas: 3)"),
            record(11, "ann", "drain node a"),
        ]
    }

    fn spread(by: &str, max: Option<u32>) -> proto::Spread {
        proto::Spread { by: by.into(), max }
    }

    #[test]
    fn a_pipeline_is_told_on_one_screen() {
        let name = PipelineName::new("ocr").unwrap();
        let mut response = response();
        let spec = response.deployments[0]
            .deployment
            .as_mut()
            .unwrap()
            .spec
            .as_mut()
            .unwrap();
        spec.stages[1].env = vec![proto::Environment {
            variables: BTreeMap::from([("API_KEY".into(), "s3cret".into())]),
        }];
        spec.stages[1].max_batch_size = 8;
        spec.stages[1].max_wait_ms = 10;
        spec.stages[1].spread = vec![spread("rack", None), spread("node", Some(1))];
        spec.stages[1].anti_affinity = vec![0];
        spec.rollout.get_or_insert_default().progress_deadline_ms = Some(600_000);
        response.deployments[0].goal = vec![1, 6];
        let found = PipelineDescription::new(&name, response, Vec::new(), trail())
            .unwrap()
            .unwrap();
        let text = found.render();
        for words in [
            "pipeline ocr  specification of revision 9\n",
            "code      folder /srv\n",
            "route     /ocr: decode -> find\n",
            "rollout   all replicas at once; progress within 600s\n",
            "spread=rack spread=node(max=1) anti_affinity=decode",
            "server:Stage",
            "6 (deployed with 2)",
            "8 in 10ms",
            "API_KEY",
            "back-off",
            "ValueError: no model",
            "revision 9: stage find replica 3 fits no node: b is suspect\n",
            "deploy ocr (stages: 2, replicas: 3)",
        ] {
            assert!(text.contains(words), "{words:?} is missing:\n{text}");
        }
        let json = serde_json::to_string(&found).unwrap();
        for words in ["s3cret", "asr"] {
            assert!(
                !text.contains(words) && !json.contains(words),
                "{words}\n{text}{json}"
            );
        }
        assert_eq!(found.events.len(), 1);
        let other = PipelineName::new("none").unwrap();
        let none = PipelineDescription::new(&other, crate::report::tests::response(), vec![], vec![]);
        assert!(none.unwrap().is_none());
    }

    #[test]
    fn a_node_is_told_with_what_runs_there() {
        let mut response = response();
        let node = response.nodes[0].node.as_mut().unwrap();
        node.capacity = Some(proto::Capacity {
            gpus: vec![proto::Gpu {
                model: "H100".into(),
                memory: 80 << 30,
            }],
            cpus: 8000,
            memory: 3 << 29,
        });
        let placements = &mut response.deployments[0].deployment.as_mut().unwrap().placements;
        let here = placements
            .iter_mut()
            .find(|placement| placement.node == "a" && placement.stage == 1);
        here.unwrap().gpus = vec![0];
        let a = NodeId::new("a").unwrap();
        let found = NodeDescription::new(&a, response, trail()).unwrap().unwrap();
        let text = found.render();
        for words in [
            "node a  up  heard 0.4s ago\n",
            "labels gpu=h200\n",
            "cpus 8  memory 1.5GiB\n",
            "H100   80GiB   ocr/find/1",
            "ocr       9",
            "drain node a",
            "join with token 1",
        ] {
            assert!(text.contains(words), "{words:?} is missing:\n{text}");
        }
        let json = serde_json::to_value(&found).unwrap();
        assert_eq!(
            (&json["replicas"][0]["stage"], &json["node"]["name"]),
            (&"decode".into(), &"a".into())
        );
        let none = NodeDescription::new(
            &NodeId::new("z").unwrap(),
            crate::report::tests::response(),
            vec![],
        );
        assert!(none.unwrap().is_none());
    }

    #[test]
    fn events_are_the_newest() {
        let many = (0..30)
            .map(|index| record(index, "ann", "scale ocr find=2"))
            .collect();
        let events = events(many, "ocr");
        assert_eq!((events.len(), events[9].entry), (MAX_EVENTS, 29));
    }

    #[test]
    fn sizes_have_few_digits() {
        let cases = [
            (0, "0B"),
            (1023, "1023B"),
            (10 << 20, "10MiB"),
            (85_520_809_984, "79.6GiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(size(bytes), text);
        }
    }
}
