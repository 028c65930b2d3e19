//! Settings of a gateway.

use std::path::PathBuf;
use std::time::Duration;

use mosec_telemetry::ServiceSeries;

/// Settings of a gateway.
#[derive(Debug, Clone)]
pub struct Config {
    /// Address or host name to listen on.
    pub address: String,
    /// Port to listen on; 0 takes any that is free.
    pub port: u16,
    /// Where the last topology is kept, for a start without the control plane. Nowhere where absent.
    pub state_dir: Option<PathBuf>,
    /// How MOSEC's series are named and divided.
    pub series: ServiceSeries,
    /// Whether bodies may be compressed, in both directions.
    pub compression: bool,
    /// Most connections at once; whoever comes beyond them is answered 503 and closed. A connection costs at most about
    /// 200 KiB of buffers where it is HTTP/1, so all of them stay below 2 GiB. Fewer where the process may not open as many files.
    pub max_connections: usize,
    /// Most bytes of request bodies in memory, while they are read and until they are answered.
    pub max_body_bytes: u64,
    /// How long a request waits for room among those bytes before it is refused: long enough for a burst to pass, and
    /// too short for a client to give up.
    pub body_memory_wait: Duration,
    /// How long a new connection may take to the end of its first request's head.
    pub head_timeout: Duration,
    /// How long a connection may be without a request, or take to the end of the next one's head. Longer than load balancers and clients' pools keep one (60 to 120
    /// seconds), so that they close first: a request that meets a closing server is lost.
    pub idle_timeout: Duration,
    /// How long a body may stand still: longer than any network recovers, and short enough that stalled clients do
    /// not pile up.
    pub body_idle_timeout: Duration,
    /// Longest time to send a body, plus what has come of it at 64 KiB/s.
    pub body_timeout: Duration,
    /// How long bytes sent to a client may stay unacknowledged before its connection is ended. Covers clients that do not
    /// read their answers. A stream of events on HTTP/2 that is not read for so long ends alone.
    pub write_timeout: Duration,
    /// Longest time in-flight requests are waited for at shutdown; never shorter than the longest timeout of a pipeline.
    pub drain_timeout: Duration,
    /// How long a stage may be without a ready replica before its requests are refused.
    pub replica_grace: Duration,
}

/// Bytes a second a client must send on average after the first [`Config::body_timeout`]: the slowest mobile links.
pub(crate) const MIN_BODY_RATE: u64 = 64 * 1024;

impl Default for Config {
    fn default() -> Self {
        Self {
            address: "0.0.0.0".into(),
            port: 8000,
            state_dir: None,
            series: ServiceSeries::default(),
            compression: false,
            max_connections: 8192,
            max_body_bytes: 1 << 30,
            body_memory_wait: Duration::from_secs(1),
            head_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(180),
            body_idle_timeout: Duration::from_secs(20),
            body_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(30),
            replica_grace: Duration::from_secs(5),
        }
    }
}
