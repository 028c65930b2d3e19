//! Clients' connections: how many there may be, and how long each may be of no use.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::request::{self, Shared};
use crate::stall::Streams;

/// Buffers of one connection or stream in either direction. Bounds a request's head, too; hyper's default is 400 KiB.
const BUFFER_BYTES: usize = 64 * 1024;
/// Heads of HTTP/2, unpacked.
const HEAD_BYTES: u32 = 64 * 1024;
/// Requests at once on one connection of HTTP/2: hyper's default.
const STREAMS: u32 = 200;
/// How often a client of HTTP/2 is asked whether it is there, and how long it may take to say so.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Files this process needs besides clients' connections: links, rings, logs.
const OTHER_FILES: u64 = 512;

/// Connections beyond the bound that are being answered at once; more are closed without a word.
const REFUSALS: usize = 64;
const REFUSAL_TIME: Duration = Duration::from_secs(1);
const REFUSAL: &[u8] = concat!(
    "HTTP/1.1 503 Service Unavailable\r\nserver: mosec/",
    env!("CARGO_PKG_VERSION"),
    "\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 20\r\n\r\ntoo many connections"
)
.as_bytes();

/// Serves every connection that comes, up to the bound, until it is dropped.
pub(crate) async fn accept(
    listener: &TcpListener,
    shared: &Arc<Shared>,
    connections: &TaskTracker,
    closing: &CancellationToken,
) {
    let free = Arc::new(Semaphore::new(bound(&shared.config)));
    let refusals = Arc::new(Semaphore::new(REFUSALS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: connections that end free some.
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        if let Ok(place) = free.clone().try_acquire_owned() {
            let (shared, closing) = (shared.clone(), closing.clone());
            connections.spawn(async move {
                shared.metrics.connections.inc();
                serve(stream, &shared, closing).await;
                shared.metrics.connections.dec();
                drop(place);
            });
            continue;
        }
        // An answer, and not a wait in the kernel's queue: a client that waits cannot tell this from a dead server.
        shared.metrics.refused_connections.inc();
        if let Ok(place) = refusals.clone().try_acquire_owned() {
            connections.spawn(async move {
                // Whether it has heard it or not, it is gone.
                let _ = tokio::time::timeout(REFUSAL_TIME, refuse(stream)).await;
                drop(place);
            });
        }
    }
}

/// Most connections at once: the configured number, or what the limit of open files leaves, raised as far as it goes.
fn bound(config: &Config) -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    let wanted = config.max_connections as u64 + OTHER_FILES;
    let allowed = limit.maximum.unwrap_or(u64::MAX);
    if limit.current.is_some_and(|current| current < wanted) {
        let raised = Rlimit {
            current: Some(wanted.min(allowed)),
            maximum: limit.maximum,
        };
        match setrlimit(Resource::Nofile, raised) {
            Ok(()) => limit = raised,
            Err(error) => tracing::warn!(%error, "cannot raise the limit of open files"),
        }
    }
    let left = limit.current.map_or(u64::MAX, |current| {
        current.saturating_sub(OTHER_FILES).max(current / 2)
    });
    let bound = config
        .max_connections
        .min(usize::try_from(left).unwrap_or(usize::MAX))
        .clamp(1, Semaphore::MAX_PERMITS);
    if bound < config.max_connections {
        tracing::warn!(bound, "the limit of open files bounds the connections");
    }
    bound
}

async fn refuse(mut stream: TcpStream) -> io::Result<()> {
    stream.write_all(REFUSAL).await?;
    stream.shutdown().await?;
    // Closing with unread bytes resets the connection, and the client may lose the answer.
    let mut rest = [0; 1024];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}

async fn serve(stream: TcpStream, shared: &Arc<Shared>, closing: CancellationToken) {
    if let Err(error) = prepare(&stream, &shared.config) {
        tracing::debug!(%error, "cannot set the socket's options");
    }
    let activity = Arc::new(Activity::new());
    let service = service_fn(|http: hyper::Request<Incoming>| {
        let (shared, busy) = (shared.clone(), Busy::new(&activity));
        async move {
            let response = request::handle(shared, http).await;
            drop(busy);
            Ok::<_, Infallible>(response)
        }
    });
    let builder = builder(&shared.config);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        used = activity.unused(&shared.config) => {
            if !used {
                tracing::debug!("a connection without a request is closed");
                return;
            }
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        () = closing.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(error, "connection ended");
    }
}

fn prepare(stream: &TcpStream, config: &Config) -> io::Result<()> {
    // Answers are written whole; waiting to fill a packet only delays them.
    stream.set_nodelay(true)?;
    socket2::SockRef::from(stream).set_tcp_user_timeout(Some(config.write_timeout))
}

fn builder(config: &Config) -> auto::Builder<Streams> {
    let mut builder = auto::Builder::new(Streams {
        write_timeout: config.write_timeout,
    });
    builder
        .http1()
        .timer(TokioTimer::new())
        // Hyper counts from the end of the request before.
        .header_read_timeout(config.idle_timeout)
        .max_buf_size(BUFFER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEAD_BYTES)
        .max_send_buf_size(BUFFER_BYTES);
    builder
}

/// What a connection is used for.
struct Activity(Mutex<Use>);

struct Use {
    requests: usize,
    /// Whether there has been a request at all.
    used: bool,
    since: Instant,
}

impl Activity {
    fn new() -> Self {
        Self(Mutex::new(Use {
            requests: 0,
            used: false,
            since: Instant::now(),
        }))
    }

    /// Waits until the connection has been without a request for too long; whether it ever had one.
    async fn unused(&self, config: &Config) -> bool {
        loop {
            let now = Instant::now();
            // Looked at now and then, so that requests set no timer.
            let (due, used) = {
                let state = self.0.lock();
                match (state.requests, state.used) {
                    (0, false) => (state.since + config.head_timeout, false),
                    (0, true) => (state.since + config.idle_timeout, true),
                    _ => (now + config.idle_timeout, true),
                }
            };
            if due <= now {
                return used;
            }
            // What it is used for may have changed by then.
            tokio::time::sleep_until(due.min(now + config.idle_timeout)).await;
        }
    }
}

/// A request in progress.
struct Busy(Arc<Activity>);

impl Busy {
    fn new(activity: &Arc<Activity>) -> Self {
        let mut state = activity.0.lock();
        state.requests += 1;
        state.used = true;
        drop(state);
        Self(activity.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut state = self.0.0.lock();
        state.requests -= 1;
        state.since = Instant::now();
    }
}
