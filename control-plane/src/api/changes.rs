//! Calls that change what runs, and where, without a new revision.

use std::future::Future;

use mosec_types::NodeId;
use mosec_types::spec::MAX_REPLICAS;
use mosec_wire::control::proto;
use tonic::{Request, Response, Status};

use super::revisions::pipeline;
use super::{Api, answer, dedup, forward, invalid, origin, unexpected};
use crate::access;
use crate::raft::handle::ProposeError;
use crate::state::{Command, Origin, Proposal, Reply};

type Answer = Result<Response<proto::ChangeResponse>, Status>;

/// A request for a change: who asks, and the command it stands for.
pub(super) trait Change: Clone + Send + 'static {
    /// Who asked the member that forwards it.
    fn by(&mut self) -> &mut String;
    fn dedup(&self) -> Option<proto::Dedup>;
    fn command(&self, origin: Origin) -> Result<Command, Status>;
}

/// Makes the change, here or at the leader.
pub(super) async fn make<Q, F, Fut>(api: &Api, mut request: Request<Q>, send: F) -> Answer
where
    Q: Change,
    F: FnOnce(forward::Client, Request<Q>) -> Fut,
    Fut: Future<Output = Answer>,
{
    let forwarded_for = request.get_mut().by().clone();
    let by = access::asked_by(&request, &forwarded_for);
    let proposal = Proposal {
        command: request.get_ref().command(origin(&by))?,
        dedup: dedup(request.get_ref().dedup())?,
    };
    *request.get_mut().by() = by;
    match api.handle.propose(proposal).await {
        Err(ProposeError::NotLeader { leader }) => api.forward(leader, request, send).await,
        reply => match answer(reply)? {
            Reply::Done { version } => Ok(Response::new(proto::ChangeResponse { version })),
            other => Err(unexpected(&other)),
        },
    }
}

fn node(name: &str) -> Result<NodeId, Status> {
    NodeId::new(name).map_err(|error| invalid("node", error))
}

macro_rules! accessors {
    () => {
        fn by(&mut self) -> &mut String {
            &mut self.by
        }

        fn dedup(&self) -> Option<proto::Dedup> {
            self.dedup.clone()
        }
    };
}

impl Change for proto::PromoteRequest {
    accessors!();

    fn command(&self, origin: Origin) -> Result<Command, Status> {
        let pipeline = pipeline(&self.pipeline)?;
        Ok(Command::Promote { pipeline, origin })
    }
}

impl Change for proto::AbortRequest {
    accessors!();

    fn command(&self, origin: Origin) -> Result<Command, Status> {
        let pipeline = pipeline(&self.pipeline)?;
        Ok(Command::Abort { pipeline, origin })
    }
}

impl Change for proto::ScaleRequest {
    accessors!();

    fn command(&self, origin: Origin) -> Result<Command, Status> {
        if self.replicas.is_empty() {
            return Err(invalid("replicas", "expected at least one stage"));
        }
        if let Some((stage, found)) = self
            .replicas
            .iter()
            .find(|(_, count)| !(1..=MAX_REPLICAS).contains(count))
        {
            let problem = format!("expected 1 to {MAX_REPLICAS}, found {found}");
            return Err(invalid(&format!("replicas.{stage}"), problem));
        }
        Ok(Command::Scale {
            pipeline: pipeline(&self.pipeline)?,
            replicas: self.replicas.clone().into_iter().collect(),
            origin,
        })
    }
}

impl Change for proto::SetTrafficRequest {
    accessors!();

    fn command(&self, origin: Origin) -> Result<Command, Status> {
        if self.weight > 100 {
            let problem = format!("expected 0 to 100 percent, found {}", self.weight);
            return Err(invalid("weight", problem));
        }
        Ok(Command::SetTraffic {
            pipeline: pipeline(&self.pipeline)?,
            weight: self.weight,
            origin,
        })
    }
}

impl Change for proto::DrainNodeRequest {
    accessors!();

    fn command(&self, origin: Origin) -> Result<Command, Status> {
        Ok(Command::DrainNode {
            node: node(&self.node)?,
            draining: self.draining,
            origin,
        })
    }
}

impl Change for proto::RemoveNodeRequest {
    accessors!();

    fn command(&self, origin: Origin) -> Result<Command, Status> {
        Ok(Command::RemoveNode {
            node: node(&self.node)?,
            origin,
        })
    }
}
