//! Bundles to and from the other members.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::ready;
use futures_util::stream::{FuturesUnordered, StreamExt as _, TryStreamExt as _};
use mosec_types::BundleId;
use mosec_wire::control::proto::control_plane_client::ControlPlaneClient;
use mosec_wire::control::{BUNDLE_TIMEOUT, FORWARDED_KEY, bundle_chunks, collect_bundle, proto};
use openraft::{BasicNode, Membership};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::Bundles;
use crate::peers::are_majority;
use crate::raft::MemberId;

/// How long another member may take to say what it has: less than a client gives one try.
const ASK_TIMEOUT: Duration = Duration::from_millis(1500);
/// Most questions to one member at a time.
const MAX_QUESTIONS: usize = 16;
/// How long members beyond a majority are waited for. What they do not get now they fetch themselves.
const LINGER: Duration = Duration::from_secs(1);

/// Which members have a bundle, and why others do not.
#[derive(Debug, Default)]
pub(crate) struct Holders {
    pub(crate) members: BTreeSet<MemberId>,
    missing: BTreeMap<MemberId, String>,
}

impl Holders {
    /// `of`: the control plane's membership.
    pub(crate) fn are_majority(&self, of: &Membership<MemberId, BasicNode>) -> bool {
        are_majority(of, &self.members)
    }

    /// Says who has no copy, and why.
    pub(crate) fn shortage(&self, id: &BundleId, of: &Membership<MemberId, BasicNode>) -> String {
        let of = of.voter_ids().count();
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
    /// Who belongs to the control plane.
    pub(crate) fn membership(&self) -> Membership<MemberId, BasicNode> {
        self.0.peers.membership()
    }

    /// The other members and their addresses.
    fn others(&self) -> Vec<(MemberId, String)> {
        self.0.peers.others(self.0.member)
    }

    /// Asks every member whether it has a bundle.
    pub(crate) async fn holders(&self, id: BundleId) -> Holders {
        let mut holders = Holders::default();
        holders.note(self.0.member, self.renew(id).await);
        let mut asked: FuturesUnordered<_> = self
            .others()
            .into_iter()
            .map(|(member, address)| async move { (member, self.ask(member, &address, id).await) })
            .collect();
        while let Some((member, answer)) = asked.next().await {
            holders.note(member, answer);
        }
        holders
    }

    /// How many of the `wanted` another member lacks; or this one.
    pub(crate) async fn missing(
        &self,
        member: MemberId,
        address: &str,
        wanted: &BTreeSet<BundleId>,
    ) -> Result<usize, Status> {
        let client = self.client(address)?;
        let asked = futures_util::stream::iter(wanted.iter().copied()).map(|id| {
            let mut client = client.clone();
            async move {
                match member == self.0.member {
                    true => self.renew(id).await,
                    false => self.has(&mut client, member, id).await,
                }
            }
        });
        let answers = asked.buffer_unordered(MAX_QUESTIONS);
        answers
            .try_fold(0, |missing, has| ready(Ok(missing + usize::from(!has))))
            .await
    }

    /// Gives a bundle that is here to the other members. Ends when all have it, or a majority and the others are slow.
    pub(crate) async fn spread(&self, id: BundleId, bytes: &Bytes) -> Holders {
        let of = self.membership();
        let mut holders = Holders::default();
        holders.note(self.0.member, Ok(true));
        for (member, _) in self.others() {
            holders
                .missing
                .insert(member, format!("did not take it within {BUNDLE_TIMEOUT:?}"));
        }
        let mut given: FuturesUnordered<_> = self
            .others()
            .into_iter()
            .map(|(member, address)| async move { (member, self.give(member, &address, id, bytes).await) })
            .collect();
        let mut deadline = Instant::now() + BUNDLE_TIMEOUT;
        let mut lingers = false;
        loop {
            if holders.are_majority(&of) && !lingers {
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
        for (member, address) in self.others() {
            match timeout(BUNDLE_TIMEOUT, self.take(&address, id)).await {
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

    async fn ask(&self, member: MemberId, address: &str, id: BundleId) -> Result<bool, Status> {
        self.has(&mut self.client(address)?, member, id).await
    }

    async fn has(
        &self,
        client: &mut ControlPlaneClient<Channel>,
        member: MemberId,
        id: BundleId,
    ) -> Result<bool, Status> {
        let request = self.onward(proto::HasBundleRequest { id: id.to_string() });
        let answer = timeout(ASK_TIMEOUT, client.has_bundle(request)).await;
        let answer = answer.map_err(|_| Status::unavailable(format!("no answer within {ASK_TIMEOUT:?}")))?;
        Ok(answer?.into_inner().members.contains(&member))
    }

    async fn give(&self, member: MemberId, address: &str, id: BundleId, bytes: &Bytes) -> Result<(), Status> {
        if self.ask(member, address, id).await? {
            return Ok(());
        }
        let mut client = self.client(address)?;
        let chunks = futures_util::stream::iter(bundle_chunks(&id, bytes));
        client.put_bundle(self.onward(chunks)).await.map(drop)
    }

    async fn take(&self, address: &str, id: BundleId) -> Result<Bytes, Status> {
        let mut client = self.client(address)?;
        let request = self.onward(proto::GetBundleRequest { id: id.to_string() });
        let chunks = client.get_bundle(request).await?.into_inner();
        let bytes = collect_bundle(chunks, BytesMut::new(), mosec_bundle::MAX_BYTES).await?;
        self.keep(id, bytes.clone()).await?;
        Ok(bytes)
    }

    fn client(&self, address: &str) -> Result<ControlPlaneClient<Channel>, Status> {
        let channel = self.0.peers.own_channel(address);
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
