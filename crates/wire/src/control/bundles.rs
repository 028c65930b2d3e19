//! Bundles of code to and from the control plane.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use mosec_types::BundleId;
use tonic::{Code, Request, Response, Status, Streaming};

use super::client::{ControlClient, ControlError};
use super::proto;

/// Bytes of one message: a few round trips' worth, and far below the limit of a message.
const CHUNK_BYTES: usize = 256 * 1024;
/// How long one transfer may take: the largest bundle by default, 64 MiB, at 6 Mbit/s.
pub const BUNDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// How long a transfer may take with all its tries: two members that stall, and a third one that does not.
pub const BUNDLE_CALL_TIMEOUT: Duration = Duration::from_secs(200);

impl ControlClient {
    /// Stores a bundle on a majority of the members. Cheap where it is stored already.
    pub async fn put_bundle(&self, id: BundleId, bytes: Bytes) -> Result<(), ControlError> {
        if self.has_bundle(&id).await? {
            return Ok(());
        }
        let limits = (BUNDLE_TIMEOUT, BUNDLE_CALL_TIMEOUT);
        let put = self.call_within(limits, (id, bytes), |mut client, request| async move {
            let (id, bytes) = request.into_inner();
            client.put_bundle(stream::iter(bundle_chunks(&id, &bytes))).await
        });
        put.await.map(drop)
    }

    /// Whether a majority of the members has a bundle.
    pub async fn has_bundle(&self, id: &BundleId) -> Result<bool, ControlError> {
        let request = proto::HasBundleRequest { id: id.to_string() };
        let reply = self.call(request, |mut client, request| async move {
            client.has_bundle(request).await
        });
        Ok(reply.await?.majority)
    }

    /// A bundle's bytes, which are not checked here. `max_bytes`: most that are taken.
    pub async fn get_bundle(&self, id: &BundleId, max_bytes: u64) -> Result<Bytes, ControlError> {
        let limits = (BUNDLE_TIMEOUT, BUNDLE_CALL_TIMEOUT);
        let request = proto::GetBundleRequest { id: id.to_string() };
        self.call_within(limits, request, |mut client, request: Request<_>| async move {
            let chunks = client.get_bundle(request).await?.into_inner();
            collect_bundle(chunks, BytesMut::new(), max_bytes)
                .await
                .map(Response::new)
        })
        .await
    }
}

/// A bundle as it is sent.
pub fn bundle_chunks(
    id: &BundleId,
    bytes: &Bytes,
) -> impl Iterator<Item = proto::BundleChunk> + Send + use<> {
    let (id, bytes) = (id.to_string(), bytes.clone());
    let starts = (0..bytes.len().max(1)).step_by(CHUNK_BYTES);
    starts.map(move |start| proto::BundleChunk {
        id: if start == 0 { id.clone() } else { String::new() },
        data: bytes.slice(start..bytes.len().min(start + CHUNK_BYTES)),
    })
}

/// The bytes of a bundle that is received, after those of `first`. `max_bytes`: most that are taken.
pub async fn collect_bundle(
    mut chunks: Streaming<proto::BundleChunk>,
    first: BytesMut,
    max_bytes: u64,
) -> Result<Bytes, Status> {
    let mut bytes = first;
    loop {
        if bytes.len() as u64 > max_bytes {
            let message =
                format!("the bundle is larger than {max_bytes} bytes, which is the most that is taken here");
            return Err(Status::new(Code::ResourceExhausted, message));
        }
        match chunks.message().await? {
            Some(chunk) => bytes.extend_from_slice(&chunk.data),
            None => return Ok(bytes.freeze()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_make_up_the_bundle_and_the_first_names_it() {
        let id = BundleId::from_digest([1; 32]);
        for length in [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES] {
            let bytes = Bytes::from(vec![7; length]);
            let chunks: Vec<_> = bundle_chunks(&id, &bytes).collect();
            assert_eq!(chunks[0].id, id.to_string());
            assert!(chunks[1..].iter().all(|chunk| chunk.id.is_empty()));
            let joined: Vec<u8> = chunks.iter().flat_map(|chunk| chunk.data.to_vec()).collect();
            assert_eq!(joined, bytes, "{length}");
        }
    }
}
