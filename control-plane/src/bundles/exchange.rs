//! Bundles to and from the other members.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use mosec_types::BundleId;
use mosec_wire::control::proto::control_plane_client::ControlPlaneClient;
use mosec_wire::control::{BUNDLE_TIMEOUT, FORWARDED_KEY, bundle_chunks, collect_bundle, proto};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::Bundles;
use crate::raft::MemberId;

/// How long another member may take to say what it has: less than a client gives one try.
const ASK_TIMEOUT: Duration = Duration::from_millis(1500);
/// How long members beyond a majority are waited for. What they do not get now they fetch themselves.
const LINGER: Duration = Duration::from_secs(1);

/// Which members have a bundle, and why others do not.
#[derive(Debug, Default)]
pub(crate) struct Holders {
    pub(crate) members: BTreeSet<MemberId>,
    missing: BTreeMap<MemberId, String>,
}

impl Holders {
    /// `of`: members of the control plane.
    pub(crate) fn are_majority(&self, of: usize) -> bool {
        self.members.len() > of / 2
    }

    /// Says who has no copy, and why.
    pub(crate) fn shortage(&self, id: &BundleId, of: usize) -> String {
        let missing: Vec<_> = self
            .missing
            .iter()
            .map(|(member, why)| format!("member {member}: {why}"))
            .collect();
        format!(
            "bundle {} is on {} of {of} control-plane members, which is no majority ({})",
            id.short(),
            self.members.len(),
            missing.join("; ")
        )
    }

    fn note(&mut self, member: MemberId, outcome: Result<bool, Status>) {
        match outcome {
            Ok(true) => drop(self.members.insert(member)),
            Ok(false) => drop(self.missing.insert(member, "has no copy".into())),
            Err(status) => drop(self.missing.insert(member, status.message().to_owned())),
        }
    }
}

impl Bundles {
    /// Number of members of the control plane.
    pub(crate) fn members(&self) -> usize {
        self.0.peers.members().count()
    }

    fn others(&self) -> impl Iterator<Item = MemberId> + '_ {
        let own = self.0.member;
        self.0.peers.members().filter(move |&member| member != own)
    }

    /// Asks every member whether it has a bundle.
    pub(crate) async fn holders(&self, id: BundleId) -> Holders {
        let mut holders = Holders::default();
        holders.note(self.0.member, self.renew(id).await);
        let mut asked: FuturesUnordered<_> = self
            .others()
            .map(|member| async move { (member, self.ask(member, id).await) })
            .collect();
        while let Some((member, answer)) = asked.next().await {
            holders.note(member, answer);
        }
        holders
    }

    /// Gives a bundle that is here to the other members. Ends when all have it, or a majority and the others are slow.
    pub(crate) async fn spread(&self, id: BundleId, bytes: &Bytes) -> Holders {
        let of = self.members();
        let mut holders = Holders::default();
        holders.note(self.0.member, Ok(true));
        for member in self.others() {
            holders
                .missing
                .insert(member, format!("did not take it within {BUNDLE_TIMEOUT:?}"));
        }
        let mut given: FuturesUnordered<_> = self
            .others()
            .map(|member| async move { (member, self.give(member, id, bytes).await) })
            .collect();
        let mut deadline = Instant::now() + BUNDLE_TIMEOUT;
        let mut lingers = false;
        loop {
            if holders.are_majority(of) && !lingers {
                lingers = true;
                deadline = deadline.min(Instant::now() + LINGER);
            }
            match timeout_at(deadline, given.next()).await {
                Ok(Some((member, outcome))) => {
                    holders.missing.remove(&member);
                    holders.note(member, outcome.map(|()| true));
                }
                Ok(None) | Err(_) => return holders,
            }
        }
    }

    /// Fetches a bundle from whichever other member has it, and keeps it.
    pub(crate) async fn fetch(&self, id: BundleId) -> Result<Bytes, Status> {
        let mut failures = Vec::new();
        for member in self.others() {
            match timeout(BUNDLE_TIMEOUT, self.take(member, id)).await {
                Ok(Ok(bytes)) => {
                    tracing::info!(bundle = %id.short(), member, "bundle fetched from another member");
                    return Ok(bytes);
                }
                Ok(Err(status)) => failures.push(format!("member {member}: {}", status.message())),
                Err(_) => failures.push(format!("member {member}: no answer within {BUNDLE_TIMEOUT:?}")),
            }
        }
        let why = match failures.is_empty() {
            true => String::new(),
            false => format!(", and from no other ({})", failures.join("; ")),
        };
        let message = format!("bundle {} is not on member {}{why}", id.short(), self.0.member);
        Err(Status::not_found(message))
    }

    async fn ask(&self, member: MemberId, id: BundleId) -> Result<bool, Status> {
        let mut client = self.client(member)?;
        let request = self.onward(proto::HasBundleRequest { id: id.to_string() });
        let answer = timeout(ASK_TIMEOUT, client.has_bundle(request)).await;
        let answer = answer.map_err(|_| Status::unavailable(format!("no answer within {ASK_TIMEOUT:?}")))?;
        Ok(answer?.into_inner().members.contains(&member))
    }

    async fn give(&self, member: MemberId, id: BundleId, bytes: &Bytes) -> Result<(), Status> {
        if self.ask(member, id).await? {
            return Ok(());
        }
        let mut client = self.client(member)?;
        let chunks = futures_util::stream::iter(bundle_chunks(&id, bytes));
        client.put_bundle(self.onward(chunks)).await.map(drop)
    }

    async fn take(&self, member: MemberId, id: BundleId) -> Result<Bytes, Status> {
        let mut client = self.client(member)?;
        let request = self.onward(proto::GetBundleRequest { id: id.to_string() });
        let chunks = client.get_bundle(request).await?.into_inner();
        let bytes = collect_bundle(chunks, BytesMut::new(), mosec_bundle::MAX_BYTES).await?;
        self.keep(id, bytes.clone()).await?;
        Ok(bytes)
    }

    fn client(&self, member: MemberId) -> Result<ControlPlaneClient<Channel>, Status> {
        let channel = self.0.peers.own_channel(member);
        let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(ControlPlaneClient::new(channel))
    }

    /// A request that the other member answers for itself alone.
    fn onward<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert(FORWARDED_KEY, self.0.member.into());
        request
    }
}
