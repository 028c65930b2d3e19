//! One node: what it has, and what runs there.

use std::fmt::Write as _;

use mosec_types::NodeId;
use mosec_wire::control::{ConvertError, proto};
use serde::Serialize;

use super::{events, size};
use crate::report::audit::{self, AuditReport};
use crate::report::table::{self, dash, table};
use crate::report::{NodeReport, ReplicaReport, Report, nodes};
use crate::terminal::printable;
use crate::watch::Watched;

/// One node. Fields are only ever added: scripts read this.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct NodeDescription {
    pub(crate) node: NodeReport,
    pub(crate) replicas: Vec<PlacedReplica>,
    /// What people did to it lately, the newest last.
    pub(crate) events: Vec<AuditReport>,
    /// Bytes of memory of each GPU.
    pub(crate) gpu_memory: Vec<u64>,
}

/// A replica that is placed on the node.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct PlacedReplica {
    pub(crate) pipeline: String,
    pub(crate) revision: u64,
    pub(crate) phase: &'static str,
    #[serde(flatten)]
    pub(crate) replica: ReplicaReport,
}

impl Watched for NodeDescription {
    fn ageless(&self) -> Self {
        Self {
            node: self.node.ageless(),
            ..self.clone()
        }
    }
}

impl NodeDescription {
    /// `None` where there is no such node.
    pub(crate) fn new(
        node: &NodeId,
        status: proto::StatusResponse,
        audit: Vec<proto::AuditRecord>,
    ) -> Result<Option<Self>, ConvertError> {
        let capacity = status.nodes.iter().find_map(|status| {
            let found = status.node.as_ref()?;
            (found.id == node.as_str()).then(|| found.capacity.clone().unwrap_or_default())
        });
        let gpu_memory = capacity
            .unwrap_or_default()
            .gpus
            .iter()
            .map(|gpu| gpu.memory)
            .collect();
        let report = Report::try_from(status)?;
        let replicas = report.pipelines.iter().flat_map(|revision| {
            let here = revision.replicas.iter();
            let here = here.filter(|replica| replica.node == node.as_str());
            here.map(|replica| PlacedReplica {
                pipeline: revision.name.clone(),
                revision: revision.revision,
                phase: revision.phase,
                replica: replica.clone(),
            })
        });
        let replicas = replicas.collect();
        let found = report
            .nodes
            .into_iter()
            .find(|report| report.name == node.as_str());
        Ok(found.map(|found| Self {
            node: found,
            replicas,
            events: events(audit, node.as_str()),
            gpu_memory,
        }))
    }

    pub(crate) fn render(&self) -> String {
        let node = &self.node;
        let mut text = format!("node {}  {}", node.name, nodes::health(node));
        if let Some(silent) = node.silent_ms {
            let _ = write!(text, "  heard {:.1}s ago", silent as f64 / 1000.0);
        }
        let _ = writeln!(
            text,
            "\naddress {}  incarnation {}",
            node.address, node.incarnation
        );
        if !node.labels.is_empty() {
            let labels = node.labels.iter().map(|(key, value)| format!(" {key}={value}"));
            let _ = writeln!(text, "labels {}", printable(labels.collect::<String>().trim()));
        }
        if node.cpus > 0.0 || node.memory > 0 {
            let _ = writeln!(text, "cpus {}  memory {}", node.cpus, size(node.memory));
        }
        if node.leaving > 0 {
            let _ = writeln!(text, "{} workers finish what they have", node.leaving);
        }
        nodes::unreachable(&mut text, std::slice::from_ref(node));
        if !node.gpus.is_empty() {
            let _ = writeln!(text, "\n{}", self.gpus().trim_fmt());
        }
        let _ = writeln!(text, "\n{}", self.replicas());
        if !self.events.is_empty() {
            let _ = write!(text, "\n{}", audit::render(&self.events));
        }
        text
    }

    /// Each GPU with the replicas that may use it.
    fn gpus(&self) -> comfy_table::Table {
        let mut table = table(&["GPU", "MODEL", "MEMORY", "REPLICAS"]);
        for (number, model) in self.node.gpus.iter().enumerate() {
            let uses =
                |placed: &&PlacedReplica| placed.replica.gpus.iter().any(|&gpu| gpu as usize == number);
            let users = self.replicas.iter().filter(uses).map(|placed| {
                let ReplicaReport { stage, replica, .. } = &placed.replica;
                format!("{}/{stage}/{replica}", placed.pipeline)
            });
            let users: Vec<_> = users.collect();
            table.add_row([
                number.to_string(),
                printable(model),
                self.gpu_memory
                    .get(number)
                    .map_or_else(dash, |&bytes| size(bytes)),
                if users.is_empty() { dash() } else { users.join(" ") },
            ]);
        }
        table
    }

    fn replicas(&self) -> String {
        if self.replicas.is_empty() {
            return "no replicas".into();
        }
        let mut table = table(&[
            "PIPELINE",
            "REVISION",
            "PHASE",
            "STAGE",
            "REPLICA",
            "STATE",
            "PID",
            "RESTARTS",
            "LAST ERROR",
        ]);
        for placed in &self.replicas {
            let replica = &placed.replica;
            table.add_row([
                placed.pipeline.clone(),
                placed.revision.to_string(),
                placed.phase.to_owned(),
                replica.stage.clone(),
                replica.replica.to_string(),
                replica.state.to_owned(),
                replica.pid.map_or_else(dash, |pid| pid.to_string()),
                replica.restarts.to_string(),
                replica.last_error.as_deref().map_or_else(dash, table::gist),
            ]);
        }
        table.trim_fmt()
    }
}
