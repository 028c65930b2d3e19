//! What is counted of links: by node what their transports know, for as long as they are open, and for the process what
//! became of all of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mosec_telemetry::{Counters, Kind, Series};
use mosec_types::NodeId;
use mosec_wire::frame::FrameError;
use mosec_wire::{LinkError, LinkStats};
use parking_lot::Mutex;
use prometheus::IntCounter;

use crate::LinkTarget;
use crate::scrape::{self, Named, Reading};

const GAUGES: [Named; 3] = [
    (
        "mosec_link_round_trip_seconds",
        "Time that a packet takes to the node and back, as the link estimates it.",
    ),
    (
        "mosec_link_congestion_window_bytes",
        "Bytes that may be on the way to the node before one is acknowledged.",
    ),
    (
        "mosec_link_batches_in_flight",
        "Batches on the link that are not answered.",
    ),
];

const COUNTERS: [Named; 6] = [
    (
        "mosec_link_sent_packets_total",
        "Packets sent on the open link to the node.",
    ),
    (
        "mosec_link_lost_packets_total",
        "Packets of the open link to the node that were taken for lost, and whose contents were sent again.",
    ),
    (
        "mosec_link_sent_bytes_total",
        "Bytes sent on the open link to the node.",
    ),
    (
        "mosec_link_received_bytes_total",
        "Bytes received on the open link to the node.",
    ),
    (
        "mosec_link_sent_datagrams_total",
        "Datagrams sent on the open link to the node.",
    ),
    (
        "mosec_link_send_calls_total",
        "Calls of the system that sent datagrams on the open link to the node. Where there are fewer than datagrams, the \
         system or the network card divides what one call hands over.",
    ),
];

/// Series of all links of a process. Clones share them.
#[derive(Clone)]
pub(crate) struct LinkMetrics {
    open: Open,
    opened: IntCounter,
    lost: Counters,
    pub(crate) resets: IntCounter,
    /// Zero where there is no socket.
    receive_buffer_bytes: Arc<AtomicUsize>,
}

/// The newest link to each node, with its number, while it is open. Of one that lingers beside a newer one nothing is
/// said, not even when that one has ended: counts of another link would look like a leap of this one's.
type Open = Arc<Mutex<BTreeMap<NodeId, (u64, LinkTarget)>>>;

impl LinkMetrics {
    pub(crate) fn new(series: &Series) -> prometheus::Result<Self> {
        let open = Open::default();
        let read = open.clone();
        scrape::register(series, Kind::Gauge, &GAUGES, &["node"], move || gauges(&read))?;
        let read = open.clone();
        scrape::register(series, Kind::Counter, &COUNTERS, &["node"], move || {
            counters(&read)
        })?;
        let receive_buffer_bytes = Arc::new(AtomicUsize::new(0));
        let bytes = receive_buffer_bytes.clone();
        let buffer = (
            "mosec_link_receive_buffer_bytes",
            "Bytes of datagrams that the system keeps for the links' socket until they are read. What arrives beyond is lost; \
             net.core.rmem_max bounds it.",
        );
        scrape::register(series, Kind::Gauge, &[buffer], &[], move || {
            let bytes = bytes.load(Ordering::Relaxed);
            let known = (bytes > 0).then(|| (Vec::new(), vec![bytes as f64]));
            known.into_iter().collect()
        })?;
        let lost = series.counters(
            "mosec_link_lost_total",
            "Links to nodes that broke while they were wanted, by reason.",
            &["reason"],
        )?;
        for error in ends() {
            lost.with_label_values(&[error.name()]);
        }
        Ok(Self {
            open,
            opened: series.counter("mosec_link_opened_total", "Links to nodes that were opened.")?,
            lost,
            resets: series.counter(
                "mosec_link_resets_total",
                "Batches called back from their node as nobody waited for them any more.",
            )?,
            receive_buffer_bytes,
        })
    }

    pub(crate) fn set_receive_buffer_bytes(&self, bytes: usize) {
        self.receive_buffer_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Counts a link, and shows it until the guard is dropped or a newer one to the node is opened.
    pub(crate) fn open(&self, node: &NodeId, target: &LinkTarget) -> OpenLink {
        let mut open = self.open.lock();
        // Under the lock: no two links have the same number.
        self.opened.inc();
        let number = self.opened.get();
        let older = open.insert(node.clone(), (number, target.clone()));
        // The lock is released first, as in the drop of a guard.
        drop(open);
        drop(older);
        OpenLink {
            open: self.open.clone(),
            node: node.clone(),
            number,
        }
    }

    pub(crate) fn lost(&self, error: &LinkError) {
        self.lost.with_label_values(&[error.name()]).inc();
    }
}

/// How links that were open end. Their reasons are shown before the first of them: what comes into being at 1 has no rate.
fn ends() -> [LinkError; 3] {
    [
        LinkError::Lost(String::new()),
        LinkError::Silent(Duration::ZERO),
        LinkError::Protocol(FrameError::Truncated),
    ]
}

/// A link that is open. Ends with its drop.
pub(crate) struct OpenLink {
    open: Open,
    node: NodeId,
    number: u64,
}

impl Drop for OpenLink {
    fn drop(&mut self) {
        let mut open = self.open.lock();
        let is_shown = open
            .get(&self.node)
            .is_some_and(|(number, _)| *number == self.number);
        let ended = is_shown.then(|| open.remove(&self.node));
        // The lock is released first: the link may end with this.
        drop(open);
        drop(ended);
    }
}

fn gauges(open: &Open) -> Vec<Reading> {
    read(open, |target, stats| {
        vec![
            stats.round_trip.as_secs_f64(),
            stats.congestion_window_bytes as f64,
            target.in_flight() as f64,
        ]
    })
}

fn counters(open: &Open) -> Vec<Reading> {
    read(open, |_, stats| {
        let counts = [
            stats.sent_packets,
            stats.lost_packets,
            stats.sent_bytes,
            stats.received_bytes,
            stats.sent_datagrams,
            stats.send_calls,
        ];
        counts.map(|count| count as f64).to_vec()
    })
}

/// What is shown of the links that know their transport.
fn read(open: &Open, values: impl Fn(&LinkTarget, LinkStats) -> Vec<f64>) -> Vec<Reading> {
    // The lock is released first, as whoever is asked may take its time.
    let links = open.lock().clone();
    let of_link = |(node, (_, target)): (NodeId, (u64, LinkTarget))| {
        let stats = target.stats()?;
        Some((vec![node.to_string()], values(&target, stats)))
    };
    links.into_iter().filter_map(of_link).collect()
}
