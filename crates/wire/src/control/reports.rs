//! What gateways report.

use mosec_types::traffic::Counts;
use mosec_types::{Revision, Unreachable};

use super::client::{ControlClient, ControlError, Service};
use super::proto;

/// A gateway's report, due each second while it runs.
#[derive(Debug, Clone, Copy)]
pub struct GatewayReport<'a> {
    /// Names one run of the gateway, with which its counts began: 1 to 128 bytes.
    pub run: &'a str,
    /// All requests of each revision since then.
    pub counts: &'a [(Revision, Counts)],
    /// All nodes to which it can open no link now, up to [`MAX_UNREACHABLE`](mosec_types::reach::MAX_UNREACHABLE).
    pub unreachable: &'a [Unreachable],
    /// The gateway ends with this report.
    pub ends: bool,
}

impl ControlClient {
    /// Tells the leader that a gateway is there, what has become of the revisions' requests, and which nodes cannot be reached.
    pub async fn report_traffic(&self, report: &GatewayReport<'_>) -> Result<(), ControlError> {
        let of_revision = |(revision, counts): &(Revision, Counts)| proto::RevisionTraffic {
            revision: revision.0,
            requests: counts.requests,
            errors: counts.errors,
            slow: counts.slow,
        };
        let request = proto::TrafficReport {
            gateway: report.run.to_owned(),
            revisions: report.counts.iter().map(of_revision).collect(),
            name: String::new(),
            unreachable: report.unreachable.iter().map(Into::into).collect(),
            build: Some(env!("CARGO_PKG_VERSION").to_owned()),
            ends: report.ends,
        };
        let send = |mut client: Service, request| async move { client.report_traffic(request).await };
        self.call(request, send).await?;
        Ok(())
    }
}
