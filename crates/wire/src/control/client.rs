//! Client of the control plane: tries its nodes in turn, follows leader hints, bounds every call.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mosec_types::{PipelineName, PipelineSpec, Revision};
use parking_lot::Mutex;
use rand::Rng;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use super::endpoint::{Channels, EndpointError};
use super::heartbeat::Registration;
use super::proto::control_plane_client::ControlPlaneClient;
use super::{LEADER_KEY, MAX_MESSAGE_BYTES, proto};
use crate::tls::{Identity, LiveIdentity};

/// Where the control plane is and how long its calls may take.
#[derive(Clone)]
pub struct ClientConfig {
    /// `host:port` of some or all control-plane nodes.
    pub endpoints: Vec<String>,
    /// Plain text where absent.
    pub identity: Option<LiveIdentity>,
    /// Time for one try at one node.
    pub attempt_timeout: Duration,
    /// Time for a call with all its tries. Longer than the loss of a leader lasts.
    pub call_timeout: Duration,
}

impl ClientConfig {
    pub fn new(endpoints: Vec<String>, identity: Option<Identity>) -> Self {
        Self::live(endpoints, identity.map(LiveIdentity::from))
    }

    /// As [`ClientConfig::new`], with an identity that may be replaced.
    pub fn live(endpoints: Vec<String>, identity: Option<LiveIdentity>) -> Self {
        let (attempt_timeout, call_timeout) = (Duration::from_secs(3), Duration::from_secs(15));
        Self {
            endpoints,
            identity,
            attempt_timeout,
            call_timeout,
        }
    }
}

/// Why a call to the control plane failed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The control plane answered no. Trying again would not help.
    #[error("{message}")]
    Refused { code: Code, message: String },
    /// No node could answer within the call's time. The call may have had its effect.
    #[error("the control plane is unavailable ({attempts} attempts at {endpoints}): {last}")]
    Unavailable {
        endpoints: String,
        attempts: u32,
        last: String,
    },
}

/// A cheap handle to the control plane as a whole.
#[derive(Clone)]
pub struct ControlClient {
    shared: Arc<Shared>,
}

/// The service at one node.
pub(super) type Service = ControlPlaneClient<Channel>;

struct Shared {
    config: ClientConfig,
    channels: Mutex<Channels>,
    /// Address that answered last or was named as the leader's.
    preferred: Mutex<Option<String>>,
    /// Where the members are by their own word: they come and go while this runs.
    learned: Mutex<Vec<String>>,
    /// Names this client to the control plane's table of repeated writes.
    name: String,
    seq: AtomicU64,
}

impl ControlClient {
    /// Checks addresses and TLS material; connects upon the first call.
    pub fn new(config: ClientConfig) -> Result<Self, EndpointError> {
        if config.endpoints.is_empty() {
            return Err(EndpointError::None);
        }
        let mut channels = Channels::new(config.identity.clone());
        for address in &config.endpoints {
            channels.get(address)?;
        }
        let shared = Shared {
            channels: Mutex::new(channels),
            preferred: Mutex::new(None),
            learned: Mutex::default(),
            name: format!("{:032x}", rand::rng().random::<u128>()),
            seq: AtomicU64::new(1),
            config,
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Announces a node; gives the topology version that has it.
    pub async fn register_node(&self, node: &Registration) -> Result<u64, ControlError> {
        let request = proto::RegisterNodeRequest::from(node);
        let reply = self.call(request, |mut client, request| async move {
            client.register_node(request).await
        });
        Ok(reply.await?.version)
    }

    /// Commits a new revision of a pipeline. Repeats of a lost answer do not commit twice.
    ///
    /// `healthy_deadline`: how long it may take until all replicas are ready, `None` for the control plane's default.
    pub async fn deploy(
        &self,
        spec: &PipelineSpec,
        healthy_deadline: Option<Duration>,
    ) -> Result<Revision, ControlError> {
        let request = proto::DeployRequest {
            spec: Some(spec.into()),
            dedup: Some(self.next_dedup()),
            healthy_deadline_ms: healthy_deadline.map_or(0, at_least_a_milli),
            by: String::new(),
        };
        let reply = self.call(request, |mut client, request| async move {
            client.deploy(request).await
        });
        Ok(Revision(reply.await?.revision))
    }

    /// Commits a new revision with the specification of an earlier one: of `to`, or else of the one that served before.
    pub async fn rollback(
        &self,
        pipeline: &PipelineName,
        to: Option<Revision>,
        healthy_deadline: Option<Duration>,
    ) -> Result<Revision, ControlError> {
        let request = proto::RollbackRequest {
            pipeline: pipeline.to_string(),
            revision: to.map(|revision| revision.0),
            dedup: Some(self.next_dedup()),
            healthy_deadline_ms: healthy_deadline.map_or(0, at_least_a_milli),
            by: String::new(),
        };
        let reply = self.call(request, |mut client, request| async move {
            client.rollback(request).await
        });
        Ok(Revision(reply.await?.revision))
    }

    /// What was deployed of a pipeline, oldest first.
    pub async fn history(&self, pipeline: &PipelineName) -> Result<Vec<proto::RevisionRecord>, ControlError> {
        let request = proto::HistoryRequest {
            pipeline: pipeline.to_string(),
        };
        let reply = self.call(request, |mut client, request| async move {
            client.history(request).await
        });
        Ok(reply.await?.revisions)
    }

    /// Removes every revision of a pipeline.
    pub async fn delete(&self, pipeline: &PipelineName) -> Result<(), ControlError> {
        let request = proto::DeleteRequest {
            pipeline: pipeline.to_string(),
            dedup: Some(self.next_dedup()),
            by: String::new(),
        };
        self.call(request, |mut client, request| async move {
            client.delete(request).await
        })
        .await?;
        Ok(())
    }

    /// The leader's view of the whole cluster.
    pub async fn status(&self) -> Result<proto::StatusResponse, ControlError> {
        let request = proto::StatusRequest {};
        self.call(request, |mut client, request| async move {
            client.status(request).await
        })
        .await
    }

    pub(super) fn next_dedup(&self) -> proto::Dedup {
        let seq = self.shared.seq.fetch_add(1, Ordering::Relaxed);
        proto::Dedup {
            client: self.shared.name.clone(),
            seq,
        }
    }

    /// Sends `request` until a node answers it or the call's time is over.
    pub(super) async fn call<Q, R, F, Fut>(&self, request: Q, send: F) -> Result<R, ControlError>
    where
        Q: Clone,
        F: Fn(ControlPlaneClient<Channel>, Request<Q>) -> Fut,
        Fut: Future<Output = Result<Response<R>, Status>>,
    {
        let config = &self.shared.config;
        let limits = (config.attempt_timeout, config.call_timeout);
        self.call_within(limits, request, send).await
    }

    /// As `call`, with the times for one try and for all of them.
    pub(super) async fn call_within<Q, R, F, Fut>(
        &self,
        (attempt_timeout, call_timeout): (Duration, Duration),
        request: Q,
        send: F,
    ) -> Result<R, ControlError>
    where
        Q: Clone,
        F: Fn(ControlPlaneClient<Channel>, Request<Q>) -> Fut,
        Fut: Future<Output = Result<Response<R>, Status>>,
    {
        let deadline = Instant::now() + call_timeout;
        let mut route = self.route();
        loop {
            let target = route.next();
            let left = deadline.saturating_duration_since(Instant::now());
            let limit = left.min(attempt_timeout);
            let sent = send(self.service(&target), Request::new(request.clone()));
            let status = match tokio::time::timeout(limit, sent).await {
                Ok(Ok(response)) => {
                    self.prefer(Some(target));
                    return Ok(response.into_inner());
                }
                Ok(Err(status)) => explained(status),
                Err(_) => Status::deadline_exceeded(format!("no answer within {limit:?}")),
            };
            if !worth_another_try(status.code()) {
                return Err(ControlError::Refused {
                    code: status.code(),
                    message: status.message().to_owned(),
                });
            }
            self.prefer(None);
            let pause = route.failed(leader_hint(&status).filter(|hint| self.admit(hint)));
            if Instant::now() + pause >= deadline {
                return Err(self.unavailable(route.attempts, &format!("{target}: {}", status.message())));
            }
            tokio::time::sleep(pause).await;
        }
    }

    fn unavailable(&self, attempts: u32, last: &str) -> ControlError {
        let endpoints = self.shared.config.endpoints.join(", ");
        ControlError::Unavailable {
            endpoints,
            attempts,
            last: last.to_owned(),
        }
    }

    /// The order in which nodes are tried, the one that answered last first.
    pub(super) fn route(&self) -> Route {
        let preferred = self.shared.preferred.lock().clone();
        Route::new(self.endpoints(), preferred)
    }

    /// Notes where the members are. Addresses that are none are left out.
    pub fn learn(&self, mut members: Vec<String>) {
        members.retain(|address| self.admit(address));
        if *self.shared.learned.lock() != members {
            tracing::debug!(?members, "the control plane's members");
            *self.shared.learned.lock() = members;
        }
    }

    /// Where members are: as they say, and behind that as configured.
    pub(super) fn endpoints(&self) -> Endpoints {
        let learned = self.shared.learned.lock().clone();
        let configured = self.shared.config.endpoints.iter();
        let others = configured.filter(|address| !learned.contains(address)).cloned();
        Endpoints {
            others: others.collect(),
            learned,
        }
    }

    pub(super) fn prefer(&self, address: Option<String>) {
        *self.shared.preferred.lock() = address;
    }

    /// Opens a channel to an address that another node named; false where it is no address.
    pub(super) fn admit(&self, address: &str) -> bool {
        match self.shared.channels.lock().get(address) {
            Ok(_) => true,
            Err(error) => {
                tracing::debug!(%error, address, "leader hint ignored");
                false
            }
        }
    }

    /// The service at an address of the configuration or one that was admitted.
    pub(super) fn service(&self, address: &str) -> ControlPlaneClient<Channel> {
        let mut channels = self.shared.channels.lock();
        let first = &self.shared.config.endpoints[0];
        let channel = channels
            .get(address)
            .or_else(|_| channels.get(first))
            .expect("configured endpoints and their TLS set-up have been checked at the start");
        ControlPlaneClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }
}

/// Addresses of members.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Endpoints {
    /// By the members' own word.
    learned: Vec<String>,
    /// Of the configuration alone. Tried after the others, as nobody may be there any more.
    others: Vec<String>,
}

impl Endpoints {
    /// In an order in which clients spread over the nodes.
    fn shuffled(self) -> VecDeque<String> {
        let drawn = |mut some: Vec<String>| {
            if !some.is_empty() {
                let start = rand::rng().random_range(0..some.len());
                some.rotate_left(start);
            }
            some
        };
        drawn(self.learned)
            .into_iter()
            .chain(drawn(self.others))
            .collect()
    }
}

/// Which node to try next, and after which pause.
pub(super) struct Route {
    known: Endpoints,
    endpoints: VecDeque<String>,
    hint: Option<String>,
    pub(super) attempts: u32,
    failures: u32,
}

impl Route {
    /// Starts at a node drawn at random, so that clients spread over the nodes, unless one is `preferred`.
    fn new(known: Endpoints, preferred: Option<String>) -> Self {
        Self {
            endpoints: known.clone().shuffled(),
            known,
            hint: preferred,
            attempts: 0,
            failures: 0,
        }
    }

    pub(super) fn next(&mut self) -> String {
        self.attempts += 1;
        if let Some(hint) = self.hint.take() {
            return hint;
        }
        let next = self.endpoints[0].clone();
        self.endpoints.rotate_left(1);
        next
    }

    /// Takes what is known now, where that is news.
    pub(super) fn learn(&mut self, known: Endpoints) {
        if self.known != known {
            self.endpoints = known.clone().shuffled();
            self.known = known;
        }
    }

    /// Notes a failure; the pause grows from 20 ms to 320 ms, and a half of it is drawn at random.
    pub(super) fn failed(&mut self, hint: Option<String>) -> Duration {
        self.hint = hint;
        let base = 20 << self.failures.min(4);
        self.failures += 1;
        Duration::from_millis(base / 2 + rand::rng().random_range(0..=base / 2))
    }

    /// Notes a success, so that the next failure's pause is short.
    pub(super) fn succeeded(&mut self) {
        self.failures = 0;
    }
}

/// The leader's address, where the answering node named it.
pub(super) fn leader_hint(status: &Status) -> Option<String> {
    status
        .metadata()
        .get(LEADER_KEY)?
        .to_str()
        .ok()
        .map(str::to_owned)
}

/// A failure of the connection with its cause, which tonic leaves to the error's sources: an expired certificate, say.
///
/// A member that stops closes its connections in order, and to a call under way that is an `Internal` of HTTP/2. Nobody
/// has answered it, so it is `Unavailable` here, as every other loss of a connection.
pub fn explained(status: Status) -> Status {
    let code = match (status.code(), std::error::Error::source(&status)) {
        (Code::Internal, Some(_)) => Code::Unavailable,
        (code, _) => code,
    };
    let mut cause = std::error::Error::source(&status);
    let mut innermost = None;
    while let Some(error) = cause {
        innermost = Some(error.to_string());
        cause = error.source();
    }
    match innermost {
        Some(text) if !status.message().contains(&text) => {
            Status::new(code, format!("{}: {text}", status.message()))
        }
        Some(_) => Status::new(code, status.message()),
        None => status,
    }
}

fn at_least_a_milli(deadline: Duration) -> u64 {
    u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX).max(1)
}

fn worth_another_try(code: Code) -> bool {
    // A broken connection shows as `Unknown` or `Cancelled` where the transport gives no better code.
    matches!(
        code,
        Code::Unavailable | Code::DeadlineExceeded | Code::Unknown | Code::Cancelled
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_whose_connection_was_closed_is_worth_another_try() {
        let mut closed = Status::internal("h2 protocol error");
        closed.set_source(Arc::new(std::io::Error::other("not a result of an error")));
        let lost = explained(closed);
        assert_eq!(lost.message(), "h2 protocol error: not a result of an error");
        assert!(worth_another_try(lost.code()));
        let told = explained(Status::internal("a bug"));
        assert_eq!((told.code(), told.message()), (Code::Internal, "a bug"));
    }

    #[test]
    fn a_route_tries_the_hint_first_and_then_every_endpoint() {
        let endpoints: Vec<_> = ["a:1", "b:1", "c:1"].map(String::from).to_vec();
        let known = Endpoints {
            others: endpoints.clone(),
            learned: vec![],
        };
        let mut route = Route::new(known, Some("x:1".into()));
        assert_eq!(route.next(), "x:1");
        let mut seen: Vec<_> = (0..3).map(|_| route.next()).collect();
        seen.sort();
        assert_eq!(seen, endpoints);
        let pauses: Vec<_> = (0..10).map(|_| route.failed(None)).collect();
        assert!(pauses.iter().all(|&pause| pause >= Duration::from_millis(10)));
        assert!(pauses[9] >= Duration::from_millis(160) && pauses[9] <= Duration::from_millis(320));
        let _ = route.failed(Some("y:1".into()));
        assert_eq!(route.next(), "y:1");
        assert_eq!(route.attempts, 5);
    }

    #[tokio::test]
    async fn what_the_members_say_comes_before_the_configuration() {
        let strings = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        let configured = vec!["a:1".to_owned(), "b:1".into()];
        let client = ControlClient::new(ClientConfig::new(configured, None)).unwrap();
        let mut route = client.route();
        client.learn(strings(&["b:1", "c:1", "d:1", "no address"]));
        route.learn(client.endpoints());
        let mut seen: Vec<_> = (0..3).map(|_| route.next()).collect();
        seen.sort();
        assert_eq!(seen, ["b:1", "c:1", "d:1"]);
        assert_eq!(route.next(), "a:1");
    }

    #[tokio::test]
    async fn a_client_needs_valid_addresses() {
        assert!(matches!(
            ControlClient::new(ClientConfig::new(vec![], None)),
            Err(EndpointError::None)
        ));
        let invalid = ControlClient::new(ClientConfig::new(vec!["no address".into()], None));
        assert!(matches!(invalid, Err(EndpointError::Address { .. })));
    }

    #[tokio::test]
    async fn a_call_without_a_control_plane_ends_in_time() {
        // Bound and dropped, so that nothing listens there.
        let address = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .to_string();
        let mut config = ClientConfig::new(vec![address.clone()], None);
        config.call_timeout = Duration::from_millis(200);
        let started = Instant::now();
        let error = ControlClient::new(config).unwrap().status().await.unwrap_err();
        let ControlError::Unavailable {
            endpoints, attempts, ..
        } = error
        else {
            panic!("{error}")
        };
        assert!(endpoints == address && attempts >= 2, "{attempts}");
        assert!(started.elapsed() < Duration::from_secs(2));
    }
}
