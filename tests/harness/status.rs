//! What `mosectl status --output json` says, as far as tests need it.

use serde_json::Value;

/// The cluster's status.
#[derive(Debug, Clone)]
pub struct Status(Value);

/// One replica of a stage.
#[derive(Debug, Clone)]
pub struct Worker {
    pub stage: String,
    pub node: String,
    pub state: String,
    pub pid: Option<u32>,
    pub restarts: u64,
}

impl Status {
    pub(crate) fn parse(json: &[u8]) -> anyhow::Result<Self> {
        Ok(Self(serde_json::from_slice(json)?))
    }

    pub fn leader(&self) -> Option<u64> {
        self.0["leader"].as_u64()
    }

    pub fn nodes_up(&self) -> usize {
        self.nodes().iter().filter(|(_, health)| health == "up").count()
    }

    /// Names and health of the agents.
    pub fn nodes(&self) -> Vec<(String, String)> {
        rows(&self.0["nodes"]).map(health).collect()
    }

    /// Names and health of the gateways.
    pub fn gateways(&self) -> Vec<(String, String)> {
        rows(&self.0["gateways"]).map(health).collect()
    }

    /// Nodes that cannot be reached, each with from where, and at which address.
    pub fn unreachable(&self) -> Vec<(String, String, String)> {
        rows(&self.0["nodes"])
            .flat_map(|node| rows(&node["unreachable"]))
            .map(|found| {
                (
                    text(&found["node"]),
                    text(&found["from"]),
                    text(&found["address"]),
                )
            })
            .collect()
    }

    /// Whether no node has a replica of anything, or a worker that is leaving.
    pub fn is_idle(&self) -> bool {
        let busy = |node: &Value| node["replicas"] != 0 || node["leaving"] != 0;
        !rows(&self.0["nodes"]).any(busy)
    }

    /// The replicas of one stage of the revision that serves.
    pub fn workers(&self, pipeline: &str, stage: &str) -> Vec<Worker> {
        let serving =
            rows(&self.0["pipelines"]).filter(|row| row["name"] == pipeline && row["phase"] == "serving");
        let replicas = serving.flat_map(|revision| rows(&revision["replicas"]));
        replicas
            .filter(|replica| replica["stage"] == stage)
            .map(worker)
            .collect()
    }
}

fn health(row: &Value) -> (String, String) {
    (text(&row["name"]), text(&row["health"]))
}

fn worker(replica: &Value) -> Worker {
    Worker {
        stage: text(&replica["stage"]),
        node: text(&replica["node"]),
        state: text(&replica["state"]),
        pid: replica["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()),
        restarts: replica["restarts"].as_u64().unwrap_or_default(),
    }
}

fn rows(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
