//! Who may call what. A peer's role and name come from the certificate that the TLS handshake has verified.

use mosec_types::NodeId;
use mosec_wire::tls::{PeerIdentity, Role};
use tonic::{Request, Status};

/// The caller, or `None` where the connection is plain text, which the operator has allowed for all then.
fn caller<T>(request: &Request<T>) -> Result<Option<PeerIdentity>, Status> {
    let Some(chain) = request.peer_certs() else {
        return Ok(None);
    };
    let leaf = chain
        .first()
        .ok_or_else(|| Status::unauthenticated("the caller has no certificate"))?;
    let peer = PeerIdentity::from_certificate(leaf);
    peer.map(Some)
        .map_err(|error| Status::unauthenticated(error.to_string()))
}

/// Refuses callers of other roles.
pub(crate) fn require<T>(request: &Request<T>, roles: &[Role]) -> Result<(), Status> {
    match caller(request)? {
        Some(peer) if !roles.contains(&peer.role) => Err(Status::permission_denied(format!(
            "a {} may not do this",
            peer.role
        ))),
        _ => Ok(()),
    }
}

/// Who asks for a change: the caller, or whom a member says that it forwards for.
pub(crate) fn asked_by<T>(request: &Request<T>, forwarded_for: &str) -> Result<String, Status> {
    Ok(match caller(request)? {
        Some(peer) if peer.role == Role::ControlPlane => forwarded_for.to_owned(),
        Some(peer) => peer.name.to_string(),
        None => String::new(),
    })
}

/// The node that an agent may speak for: its own. `None` for callers that may speak for any.
pub(crate) fn speaks_for<T>(request: &Request<T>) -> Result<Option<NodeId>, Status> {
    require(request, &[Role::Agent, Role::ControlPlane])?;
    let agent = caller(request)?.filter(|peer| peer.role == Role::Agent);
    Ok(agent.map(|peer| peer.name))
}

/// Refuses an agent that speaks for another node.
pub(crate) fn check_node(speaker: Option<&NodeId>, node: &NodeId) -> Result<(), Status> {
    match speaker {
        Some(own) if own != node => Err(Status::permission_denied(format!(
            "node {own} may not speak for node {node}"
        ))),
        _ => Ok(()),
    }
}
