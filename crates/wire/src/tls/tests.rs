use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use rustls::{ClientConnection, ServerConnection};

use super::*;

const ALPN: &[u8] = b"test/1";

/// Runs a handshake in memory, and gives the server's view of the client.
fn handshake(client: &Identity, server: &Identity, allowed: &[Role]) -> Result<PeerIdentity, rustls::Error> {
    let server_config = server_config(server, allowed, ALPN).unwrap();
    let client_config = client_config(client, ALPN).unwrap();
    let mut server = ServerConnection::new(Arc::new(server_config)).unwrap();
    let mut client = ClientConnection::new(Arc::new(client_config), Role::Agent.server_name()).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        assert!(!wire.is_empty(), "the client always has the next word");
        server.read_tls(&mut wire.as_slice()).unwrap();
        server.process_new_packets()?;
        wire.clear();
        server.write_tls(&mut wire).unwrap();
        client.read_tls(&mut wire.as_slice()).unwrap();
        client.process_new_packets()?;
    }
    assert_eq!(client.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    let certificates = server.peer_certificates().unwrap();
    Ok(PeerIdentity::from_certificate(&certificates[0]).unwrap())
}

#[test]
fn peers_of_one_authority_know_each_other() {
    let ca = ClusterCa::create().unwrap();
    let agent = ca.issue(Role::Agent, "node-1").unwrap();
    for role in [Role::Gateway, Role::Agent] {
        let client = ca.issue(role, "edge_7").unwrap();
        let seen = handshake(&client, &agent, &[Role::Gateway, Role::Agent]).unwrap();
        assert_eq!(&seen, client.peer());
        assert_eq!(seen.to_string(), format!("{role}/edge_7"));
    }
}

#[test]
fn another_authority_is_refused_on_both_sides() {
    let (ours, theirs) = (ClusterCa::create().unwrap(), ClusterCa::create().unwrap());
    let agent = ours.issue(Role::Agent, "node-1").unwrap();
    let stranger = theirs.issue(Role::Gateway, "edge").unwrap();
    handshake(&stranger, &agent, &Role::ALL).unwrap_err();
    // A stranger that pretends to trust us gets as far as the server's check of its certificate.
    let trusting = Identity::from_pem(ours.ca_pem(), stranger.cert_pem(), stranger.key_pem()).unwrap();
    handshake(&trusting, &agent, &Role::ALL).unwrap_err();
}

#[test]
fn roles_are_checked_on_both_sides() {
    let ca = ClusterCa::create().unwrap();
    let agent = ca.issue(Role::Agent, "node-1").unwrap();
    let operator = ca.issue(Role::Admin, "alice").unwrap();
    let refused = handshake(&operator, &agent, &[Role::Gateway, Role::Agent]).unwrap_err();
    let expected =
        rustls::Error::InvalidCertificate(rustls::CertificateError::ApplicationVerificationFailure);
    assert_eq!(refused, expected);
    // The client dials an agent and finds a gateway.
    let gateway = ca.issue(Role::Gateway, "edge").unwrap();
    handshake(&agent, &gateway, &Role::ALL).unwrap_err();
}

#[test]
fn authority_and_identity_survive_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let ca = ClusterCa::create().unwrap();
    ca.save(dir.path()).unwrap();
    let loaded = ClusterCa::load(dir.path()).unwrap();
    let old = ca.issue(Role::Agent, "node-1").unwrap();
    let new = loaded.issue(Role::Gateway, "edge").unwrap();
    handshake(&new, &old, &[Role::Gateway]).unwrap();

    let home = dir.path().join("agent");
    old.save(&home).unwrap();
    assert_eq!(Identity::load_as(&home, Role::Agent).unwrap(), old);
    let error = Identity::load_as(&home, Role::Gateway).unwrap_err().to_string();
    assert!(error.ends_with("is of role agent, expected gateway"), "{error}");
    for key in [dir.path().join("ca-key.pem"), home.join("key.pem")] {
        assert_eq!(
            std::fs::metadata(key).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }
}

#[test]
fn an_authority_is_never_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let ca = ClusterCa::create().unwrap();
    ca.save(dir.path()).unwrap();
    ca.save(dir.path()).unwrap();
    ClusterCa::create().unwrap().save(dir.path()).unwrap_err();
    assert_eq!(ClusterCa::load(dir.path()).unwrap().key_pem(), ca.key_pem());
}

#[test]
fn bad_input_is_an_error() {
    let ca = ClusterCa::create().unwrap();
    assert!(matches!(
        ca.issue(Role::Agent, "Not A Name"),
        Err(TlsError::Name(_))
    ));
    let agent = ca.issue(Role::Agent, "node-1").unwrap();
    // The authority's own certificate names no peer.
    assert!(Identity::from_pem(ca.ca_pem(), ca.ca_pem(), agent.key_pem()).is_err());
    assert!(Identity::from_pem("", agent.cert_pem(), agent.key_pem()).is_err());
    assert!(Identity::from_pem(ca.ca_pem(), agent.cert_pem(), "nonsense").is_err());
    let other = ClusterCa::create().unwrap();
    assert!(ClusterCa::from_pem(ca.ca_pem(), &other.key_pem()).is_err());
    assert!(ClusterCa::load(std::path::Path::new("/nonexistent")).is_err());
}

#[test]
fn secrets_are_not_printed() {
    let ca = ClusterCa::create().unwrap();
    let agent = ca.issue(Role::Agent, "node-1").unwrap();
    for text in [format!("{ca:?}"), format!("{agent:?}")] {
        assert!(!text.contains("PRIVATE"), "{text}");
    }
}

#[test]
fn what_was_an_operator_is_an_admin() {
    assert_eq!("operator".parse(), Ok(Role::Admin));
    for role in Role::ALL {
        assert_eq!(role.name().parse(), Ok(role));
    }
    let error = "king".parse::<Role>().unwrap_err().to_string();
    assert!(
        error.starts_with("unknown role \"king\": expected gateway, "),
        "{error}"
    );
}

#[test]
fn a_key_is_certified_without_leaving_its_owner() {
    let ca = ClusterCa::create().unwrap();
    let agent = ca.issue(Role::Agent, "node-1").unwrap();
    let key = PendingKey::generate().unwrap();
    let request = SigningRequest::from_der(&key.request().unwrap()).unwrap();
    let hash = request.key_hash();
    let again = PendingKey::from_pem(&key.pem()).unwrap().request().unwrap();
    assert_eq!(SigningRequest::from_der(&again).unwrap().key_hash(), hash);
    let peer = ca.issue(Role::Gateway, "edge").unwrap().peer().clone();
    let validity = Validity::starting(std::time::SystemTime::now(), std::time::Duration::from_secs(60));
    let certificate = ca.sign(&request, &peer, validity).unwrap();
    let gateway = key.certified(ca.ca_pem(), &certificate).unwrap();
    assert_eq!(handshake(&gateway, &agent, &[Role::Gateway]).unwrap(), peer);
    assert_eq!(gateway.validity().lifetime(), std::time::Duration::from_secs(66));

    // Somebody else's certificate does not fit the key, and a request that was changed proves nothing.
    let other = PendingKey::generate().unwrap();
    let mut broken = other.request().unwrap();
    assert!(other.certified(ca.ca_pem(), &certificate).is_err());
    let last = broken.len() - 1;
    broken[last] ^= 1;
    assert!(SigningRequest::from_der(&broken).is_err() && SigningRequest::from_der(b"x").is_err());
}

#[test]
fn a_save_that_was_interrupted_leaves_the_old_identity_or_the_new() {
    let dir = tempfile::tempdir().unwrap();
    let ca = ClusterCa::create().unwrap();
    let issue = || ca.issue(Role::Agent, "node-1").unwrap();
    let (old, new) = (issue(), issue());
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    assert!(!Identity::is_in(dir.path()));
    old.save(dir.path()).unwrap();
    assert!(Identity::is_in(dir.path()));
    write("cert-next.pem", new.cert_pem());
    assert_eq!(Identity::load(dir.path()).unwrap(), old);
    write("key.pem", new.key_pem());
    assert_eq!(Identity::load(dir.path()).unwrap(), new);
    assert!(
        !dir.path().join("cert-next.pem").exists(),
        "the save was completed"
    );
    assert_eq!(Identity::load(dir.path()).unwrap(), new);
}

#[test]
fn new_connections_show_the_certificate_that_is_current() {
    let ca = ClusterCa::create().unwrap();
    let agent = ca.issue(Role::Agent, "node-1").unwrap();
    let live = LiveIdentity::from(ca.issue(Role::Gateway, "edge").unwrap());
    let config = Arc::new(client_config(&live, ALPN).unwrap());
    let shown = || {
        let server = server_config(&agent, &[Role::Gateway], ALPN).unwrap();
        let mut server = ServerConnection::new(Arc::new(server)).unwrap();
        let mut client = ClientConnection::new(config.clone(), Role::Agent.server_name()).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets().unwrap();
            wire.clear();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets().unwrap();
        }
        server.peer_certificates().unwrap()[0].clone()
    };
    let first = shown();
    let next = ca.issue(Role::Gateway, "edge").unwrap();
    live.replace(next).unwrap();
    assert_ne!(shown(), first);
    // Not for another peer's, nor another authority's.
    live.replace(ca.issue(Role::Gateway, "other").unwrap())
        .unwrap_err();
    let foreign = ClusterCa::create().unwrap();
    live.replace(foreign.issue(Role::Gateway, "edge").unwrap())
        .unwrap_err();
}
