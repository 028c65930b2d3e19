//! Calls that store and give bundles of code.

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use mosec_types::BundleId;
use mosec_wire::control::{BUNDLE_TIMEOUT, FORWARDED_KEY, bundle_chunks, collect_bundle, proto};
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming};

use super::{Api, ReplyStream, invalid, sending};
use crate::state::Command;

pub(super) async fn put(
    api: &Api,
    request: Request<Streaming<proto::BundleChunk>>,
) -> Result<Response<proto::PutBundleResponse>, Status> {
    let for_itself = is_forwarded(&request);
    // What a member forwards has had its turn there: two that wait for each other's would wait in vain.
    let _turn = match for_itself {
        true => None,
        false => Some(api.bundles.turn().await?),
    };
    let late = |_| Status::deadline_exceeded(format!("the bundle did not come within {BUNDLE_TIMEOUT:?}"));
    let (id, bytes) = timeout(BUNDLE_TIMEOUT, receive(api, request.into_inner()))
        .await
        .map_err(late)??;
    let own = api.handle.member;
    let members = if for_itself {
        vec![own]
    } else {
        let holders = api.bundles.spread(id, &bytes).await;
        let of = api.bundles.membership();
        if !holders.are_majority(&of) {
            // Not worth another try by itself: each would send the bundle again.
            return Err(Status::aborted(holders.shortage(&id, &of)));
        }
        holders.members.into_iter().collect()
    };
    tracing::info!(bundle = %id.short(), bytes = bytes.len(), ?members, "bundle stored");
    Ok(Response::new(proto::PutBundleResponse { members }))
}

/// Takes a bundle and keeps it.
async fn receive(api: &Api, mut chunks: Streaming<proto::BundleChunk>) -> Result<(BundleId, Bytes), Status> {
    let first = chunks.message().await?;
    let first = first.ok_or_else(|| invalid("chunks", "expected at least one, found none"))?;
    let id = bundle_id(&first.id)?;
    let start = BytesMut::from(&first.data[..]);
    let bytes = collect_bundle(chunks, start, api.bundles.limits().max_bytes).await?;
    api.bundles.keep(id, bytes.clone()).await?;
    Ok((id, bytes))
}

pub(super) async fn has(
    api: &Api,
    request: Request<proto::HasBundleRequest>,
) -> Result<Response<proto::HasBundleResponse>, Status> {
    let id = bundle_id(&request.get_ref().id)?;
    let response = if is_forwarded(&request) {
        let members = api.bundles.renew(id).await?.then_some(api.handle.member);
        proto::HasBundleResponse {
            members: members.into_iter().collect(),
            majority: false,
        }
    } else {
        let holders = api.bundles.holders(id).await;
        proto::HasBundleResponse {
            majority: holders.are_majority(&api.bundles.membership()),
            members: holders.members.into_iter().collect(),
        }
    };
    Ok(Response::new(response))
}

pub(super) async fn give(
    api: &Api,
    request: Request<proto::GetBundleRequest>,
) -> Result<Response<ReplyStream<proto::BundleChunk>>, Status> {
    let id = bundle_id(&request.get_ref().id)?;
    let (turn, bytes) = if is_forwarded(&request) {
        let own = api.bundles.load(id).await?;
        (None, own.ok_or_else(|| Status::not_found("has no copy"))?)
    } else {
        let turn = api.bundles.turn().await?;
        (Some(turn), api.bundles.obtain(id).await?)
    };
    // What is held goes with the transfer, or after the time that one may take.
    let chunks = bundle_chunks(&id, &bytes);
    let held = (chunks, turn, bytes);
    let chunks = stream::unfold(held, |(mut chunks, turn, bytes)| async move {
        let chunk = chunks.next()?;
        Some((Ok(chunk), (chunks, turn, bytes)))
    });
    let closing = api.closing.clone();
    let over = async move {
        tokio::select! {
            () = closing.cancelled() => Status::unavailable("this member stops"),
            () = tokio::time::sleep(BUNDLE_TIMEOUT) => {
                Status::unavailable(format!("the bundle was not taken within {BUNDLE_TIMEOUT:?}"))
            }
        }
    };
    Ok(Response::new(sending::send(chunks, over)))
}

/// Refuses a pipeline whose bundle a majority does not have. Asked on the leader, before it is logged.
pub(super) async fn check(api: &Api, command: &Command) -> Result<(), Status> {
    let id = match command {
        Command::Deploy { spec, .. } => spec.source.bundle,
        _ => None,
    };
    let Some(id) = id else {
        return Ok(());
    };
    let (holders, of) = (api.bundles.holders(id).await, api.bundles.membership());
    if holders.are_majority(&of) {
        Ok(())
    } else {
        Err(Status::failed_precondition(holders.shortage(&id, &of)))
    }
}

fn is_forwarded<T>(request: &Request<T>) -> bool {
    request.metadata().contains_key(FORWARDED_KEY)
}

fn bundle_id(text: &str) -> Result<BundleId, Status> {
    text.parse().map_err(|error| invalid("id", error))
}
