//! The call that makes a backup.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use mosec_types::BundleId;
use mosec_wire::control::proto;
use openraft::ServerState;
use tokio::sync::OwnedSemaphorePermit;
use tonic::{Request, Response, Status};

use super::{Api, ReplyStream, forward, origin, sending};
use crate::access;
use crate::backup::{Encoder, Header, Kind, MAX_WHY_BYTES};
use crate::raft::codec;
use crate::raft::handle::ProposeError;
use crate::state::Model;
use crate::state::format::BUILD;

/// Bytes of one message, as of a bundle's.
const CHUNK_BYTES: usize = 256 * 1024;
/// How long one backup may take: 10 GiB of bundles at 25 Mbit/s.
const BACKUP_TIMEOUT: Duration = Duration::from_secs(60 * 60);

pub(super) async fn give(
    api: &Api,
    request: &Request<proto::BackupRequest>,
) -> Result<Response<ReplyStream<proto::BackupChunk>>, Status> {
    // One of the transfers: it holds a bundle at a time, as each of them does.
    let turn = api.bundles.turn().await?;
    let point = match api.handle.read_point().await {
        Ok(point) => point,
        // Asked for there: a stream that goes through a member would tell the ends of two connections apart for nothing.
        Err(ProposeError::NotLeader { leader }) => return Err(forward::not_leader(leader.as_ref())),
        Err(error) => return Err(forward::failure(error)),
    };
    let model = api.model.borrow().clone();
    let (term, last_index) = {
        let metrics = api.handle.raft.metrics();
        let metrics = metrics.borrow();
        (metrics.current_term, metrics.last_log_index.unwrap_or(0))
    };
    let bundles = keep(api, &model).await;
    let header = Header {
        layout: Header::LAYOUT,
        cluster_id: api.cluster_id.clone(),
        build: BUILD.to_owned(),
        format: model.format.0,
        taken_at_unix_ms: origin("").at_unix_ms,
        member: api.handle.member,
        members: api.handle.peers.voters(),
        term,
        index: point.map_or(0, |point| point.index),
        last_index,
        bundles,
    };
    let caller = access::caller(request);
    tracing::info!(%caller, index = header.index, bundles = header.bundles.len(), "a backup is made");
    let making = Making::begin(api.clone(), header, &model, turn).await?;
    let chunks = stream::try_unfold(making, |mut making| async {
        let chunk = making.next().await?;
        Ok::<_, Status>(chunk.map(|data| (proto::BackupChunk { data }, making)))
    });
    let expiry = access::expiry(caller);
    let closing = api.closing.clone();
    let over = async move {
        tokio::select! {
            () = closing.cancelled() => Status::unavailable("this member stops"),
            () = expiry => Status::unauthenticated("the certificate has expired: the backup is given up"),
            () = tokio::time::sleep(BACKUP_TIMEOUT) => {
                Status::deadline_exceeded(format!("the backup was not taken within {BACKUP_TIMEOUT:?}"))
            }
        }
    };
    Ok(Response::new(sending::send(chunks, over)))
}

/// The bundles that the state names, which stay from now on for as long as one that was just put, should their revisions be
/// forgotten meanwhile. Those that are not here, to be fetched where another member has them, come first.
async fn keep(api: &Api, model: &Model) -> Vec<BundleId> {
    let (mut here, mut elsewhere) = (Vec::new(), Vec::new());
    for id in model.bundles() {
        match api.bundles.renew(id).await {
            Ok(true) => here.push(id),
            // A file that cannot be used is as good as none.
            Ok(false) | Err(_) => elsewhere.push(id),
        }
    }
    elsewhere.append(&mut here);
    elsewhere
}

/// A backup on its way.
struct Making {
    api: Api,
    term: u64,
    /// Absent when the end is among the parts.
    encoder: Option<Encoder>,
    /// What is encoded and not sent.
    parts: VecDeque<Bytes>,
    bundles: VecDeque<BundleId>,
    _turn: OwnedSemaphorePermit,
}

impl Making {
    async fn begin(
        api: Api,
        header: Header,
        model: &Arc<Model>,
        turn: OwnedSemaphorePermit,
    ) -> Result<Self, Status> {
        let internal = |error: &dyn std::fmt::Display| Status::internal(error.to_string());
        let (term, bundles) = (header.term, header.bundles.iter().copied().collect());
        let model = model.clone();
        let encode = move || {
            let state = codec::encode_as(model.format, &*model).map_err(|error| internal(&error))?;
            let header = serde_json::to_vec(&header).map_err(|error| internal(&error))?;
            let (mut encoder, magic) = Encoder::begin();
            let mut parts = VecDeque::from([magic]);
            parts.extend(encoder.section(Kind::Header, header.into()));
            parts.extend(encoder.section(Kind::State, state.into()));
            Ok::<_, Status>((encoder, parts))
        };
        let encoded = tokio::task::spawn_blocking(encode).await;
        let (encoder, parts) = encoded.map_err(|error| internal(&error))??;
        Ok(Self {
            api,
            term,
            encoder: Some(encoder),
            parts,
            bundles,
            _turn: turn,
        })
    }

    /// The next bytes of the file; `None` at its end.
    async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        self.check_tenure()?;
        loop {
            while let Some(part) = self.parts.front_mut() {
                let chunk = part.split_to(part.len().min(CHUNK_BYTES));
                if part.is_empty() {
                    self.parts.pop_front();
                }
                if !chunk.is_empty() {
                    return Ok(Some(chunk));
                }
            }
            let Some(mut encoder) = self.encoder.take() else {
                return Ok(None);
            };
            match self.bundles.pop_front() {
                Some(id) => {
                    let (kind, bytes) = match self.api.bundles.obtain(id).await {
                        Ok(bytes) => (Kind::Bundle, Bytes::clone(&*bytes)),
                        // The state is worth saving without it, when disks are lost above all.
                        Err(status) => {
                            tracing::warn!(bundle = %id.short(), error = status.message(), "a backup lacks a bundle");
                            (Kind::Missing, why(&status))
                        }
                    };
                    let hash = move || {
                        let parts = encoder.section(kind, bytes);
                        (encoder, parts)
                    };
                    let hashed = tokio::task::spawn_blocking(hash).await;
                    let (encoder, parts) = hashed.map_err(|error| Status::internal(error.to_string()))?;
                    self.parts.extend(parts);
                    self.encoder = Some(encoder);
                }
                None => self.parts.extend(encoder.end()),
            }
        }
    }

    /// What another leader has changed since is not in this backup: better none than one that is older than it looks.
    fn check_tenure(&self) -> Result<(), Status> {
        if self.api.closing.is_cancelled() {
            return Err(Status::unavailable("this member stops"));
        }
        let metrics = self.api.handle.raft.metrics();
        let metrics = metrics.borrow();
        if metrics.state == ServerState::Leader && metrics.current_term == self.term {
            return Ok(());
        }
        Err(Status::aborted(format!(
            "member {} does not lead any more: the backup is given up",
            self.api.handle.member
        )))
    }
}

/// Why a bundle could not be had, no longer than a backup takes it. Who reads it minds no character that is cut in two.
fn why(status: &Status) -> Bytes {
    let text = status.message().as_bytes();
    Bytes::copy_from_slice(&text[..text.len().min(MAX_WHY_BYTES)])
}
