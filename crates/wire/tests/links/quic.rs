//! What only links over QUIC have: peers to be checked, and networks and strangers to be survived.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mosec_types::{Incarnation, NodeId};
use mosec_wire::frame::{Frame, FrameError};
use mosec_wire::quic::{
    ALPN, Code, ListenerConfig, QuicConnector, QuicLink, QuicListener, QuicServer, Settings,
};
use mosec_wire::tls::{ClusterCa, Identity, Role, client_config};
use mosec_wire::{Link, LinkError, LinkEvent, LinkServer};
use quinn::crypto::rustls::QuicClientConfig;

use crate::support::*;

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// A listener that keeps the servers of those who get in.
fn listen(config: ListenerConfig) -> (String, tokio::task::JoinHandle<()>) {
    let listener = QuicListener::bind(loopback(), config).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let task = tokio::spawn(async move {
        let mut servers = Vec::new();
        while let Some(server) = listener.accept().await {
            servers.push(server);
        }
    });
    (address, task)
}

fn agent(ca: &ClusterCa) -> ListenerConfig {
    ListenerConfig::new(ca.issue(Role::Agent, "node-1").unwrap(), INCARNATION)
}

async fn connect(identity: &Identity, address: &str) -> Result<QuicLink, LinkError> {
    let settings = Settings {
        connect_timeout: Duration::from_millis(500),
        ..Settings::default()
    };
    let connector = QuicConnector::new(identity, settings).unwrap();
    bounded(connector.connect(address, None)).await
}

#[tokio::test]
async fn only_gateways_and_agents_of_the_cluster_get_in() {
    let (ca, other) = (ClusterCa::create().unwrap(), ClusterCa::create().unwrap());
    let (address, _listener) = listen(agent(&ca));
    for role in [Role::Gateway, Role::Agent] {
        connect(&ca.issue(role, "peer").unwrap(), &address).await.unwrap();
    }
    let operator = ca.issue(Role::Admin, "alice").unwrap();
    let stranger = other.issue(Role::Gateway, "edge").unwrap();
    // Trusts the agent, but has a certificate of another authority.
    let trusting = Identity::from_pem(ca.ca_pem(), stranger.cert_pem(), stranger.key_pem()).unwrap();
    for identity in [operator, stranger, trusting] {
        let refused = connect(&identity, &address).await.unwrap_err();
        assert!(matches!(refused, LinkError::Connect { .. }), "{refused:?}");
    }
}

#[tokio::test]
async fn a_client_without_certificate_is_refused() {
    let ca = ClusterCa::create().unwrap();
    let (address, _listener) = listen(agent(&ca));
    let identity = ca.issue(Role::Gateway, "edge").unwrap();
    let mut roots = rustls::RootCertStore::empty();
    let pem = identity.ca_pem().as_bytes();
    roots
        .add(rustls_pki_types::pem::PemObject::from_pem_slice(pem).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let refused = async {
        let connection = raw_connect(tls, &address).await?;
        connection.accept_uni().await.map(|_| ())
    };
    assert!(matches!(
        bounded(refused).await,
        Err(quinn::ConnectionError::ConnectionClosed(_))
    ));
}

/// A connection whose streams the test writes by itself.
async fn raw_connect(
    tls: rustls::ClientConfig,
    address: &str,
) -> Result<quinn::Connection, quinn::ConnectionError> {
    let crypto = QuicClientConfig::try_from(tls).unwrap();
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    let mut transport = quinn::TransportConfig::default();
    transport.max_concurrent_uni_streams(1u32.into());
    config.transport_config(Arc::new(transport));
    let endpoint = quinn::Endpoint::client(loopback()).unwrap();
    endpoint
        .connect_with(config, address.parse().unwrap(), Role::Agent.dns_name())
        .unwrap()
        .await
}

#[tokio::test]
async fn another_node_than_expected_is_refused() {
    let ca = ClusterCa::create().unwrap();
    let (address, _listener) = listen(agent(&ca));
    let connector =
        QuicConnector::new(ca.issue(Role::Gateway, "edge").unwrap(), Settings::default()).unwrap();
    let expected = NodeId::new("node-2").unwrap();
    let refused = bounded(connector.connect(&address, Some(&expected)))
        .await
        .unwrap_err();
    let (expected, found) = ("node-2".to_owned(), "node-1".to_owned());
    assert_eq!(
        refused,
        LinkError::Protocol(FrameError::WrongPeer { expected, found })
    );
}

#[tokio::test]
async fn nobody_at_the_address_is_an_error_in_time() {
    let ca = ClusterCa::create().unwrap();
    let settings = Settings {
        connect_timeout: Duration::from_millis(200),
        ..Settings::default()
    };
    let connector = QuicConnector::new(ca.issue(Role::Gateway, "edge").unwrap(), settings).unwrap();
    let silent = std::net::UdpSocket::bind(loopback()).unwrap();
    for address in [
        silent.local_addr().unwrap().to_string(),
        "not an address".to_owned(),
    ] {
        let error = bounded(connector.connect(&address, None)).await.unwrap_err();
        assert!(
            matches!(&error, LinkError::Connect { peer, .. } if *peer == address),
            "{error:?}"
        );
    }
}

/// An agent, and an upstream of it whose streams the test writes by itself.
async fn raw_pair() -> (QuicServer, quinn::Connection, QuicListener) {
    let ca = ClusterCa::create().unwrap();
    let listener = QuicListener::bind(loopback(), agent(&ca)).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let tls = client_config(ca.issue(Role::Gateway, "edge").unwrap(), ALPN).unwrap();
    let (connection, server) = tokio::join!(raw_connect(tls, &address), listener.accept());
    (server.unwrap(), connection.unwrap(), listener)
}

#[tokio::test]
async fn a_malformed_batch_costs_its_own_stream_only() {
    bounded(async {
        let (server, connection, _listener) = raw_pair().await;
        assert_eq!(server.peer().to_string(), "gateway/edge");
        let batch = batch_of([pattern(1, 3000)]);
        let good = mosec_wire::frame::encode_batch(&batch, usize::MAX)
            .unwrap()
            .concat();
        let huge = [&good[..24], &u64::MAX.to_le_bytes()].concat();
        let wrong_kind = mosec_wire::frame::encode_finish().to_vec();
        let bad = [
            b"GET / HTTP/1.1\r\nHost: here\r\nAccept: */*\r\n\r\n".to_vec(),
            huge,
            wrong_kind,
            [&good[..], b"x"].concat(),
            good[..good.len() - 1].to_vec(),
            good[..20].to_vec(),
            Vec::new(),
        ];
        let mut refused = Vec::new();
        for bytes in bad {
            let (mut send, recv) = connection.open_bi().await.unwrap();
            let _ = send.write_all(&bytes).await; // the agent may refuse it before all is written
            let _ = send.finish();
            refused.push(recv);
        }
        // A good one behind all of them, and a stream that never gets beyond its start.
        let (mut stuck, _unanswered) = connection.open_bi().await.unwrap();
        stuck.write_all(&good[..100]).await.unwrap();
        let (mut send, _recv) = connection.open_bi().await.unwrap();
        send.write_all(&good).await.unwrap();
        send.finish().unwrap();
        assert_eq!(server.accept().await.unwrap().batch, batch);
        for mut recv in refused {
            let error = recv.read_to_end(0).await.unwrap_err();
            let quinn::ReadToEndError::Read(quinn::ReadError::Reset(code)) = error else {
                panic!("{error:?}")
            };
            assert_eq!(Code::from_wire(code), Some(Code::Protocol));
        }
    })
    .await;
}

#[tokio::test]
async fn a_batch_taken_back_half_way_never_arrives() {
    bounded(async {
        let pair = quic_pair().await;
        // More than the stream's window, so that it cannot leave as long as nobody accepts.
        let mut large = Box::pin(pair.link.send(batch_of([pattern(1, 8 * 1024 * 1024)])));
        tokio::select! {
            _ = &mut large => panic!("the agent has not read it"),
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
        }
        drop(large);
        let small = batch_of([pattern(2, 10)]);
        let _answers = pair.link.send(small.clone()).await.unwrap();
        assert_eq!(pair.server.accept().await.unwrap().batch, small);
    })
    .await;
}

#[tokio::test]
async fn many_large_batches_at_once_get_through() {
    // Together far more than the connection's window and the receiver's budget.
    let settings = Settings {
        max_receiving_bytes: 16 * 1024 * 1024,
        ..Settings::default()
    };
    let settings = Settings {
        max_body_bytes: 4 * 1024 * 1024,
        ..settings
    };
    bounded(async {
        let pair = quic_pair_with(settings).await;
        tokio::spawn(echo(Arc::clone(&pair.server)));
        let exchanges = (0..30).map(|number| {
            let link = Arc::clone(&pair.link);
            async move {
                let batch = batch_of([pattern(number, 3 * 1024 * 1024)]);
                let mut answers = link.send(batch.clone()).await.unwrap();
                assert!(
                    all_answers(&mut *answers).await.unwrap() == echoes(&batch),
                    "batch {number} differs"
                );
            }
        });
        futures_util::future::join_all(exchanges).await;
    })
    .await;
}

#[tokio::test]
async fn what_exceeds_the_limit_is_refused_where_it_is_sent() {
    let settings = Settings {
        max_body_bytes: 10_000,
        ..Settings::default()
    };
    bounded(async {
        let pair = quic_pair_with(settings).await;
        let refused = pair
            .link
            .send(batch_of([pattern(1, 10_001)]))
            .await
            .err()
            .unwrap();
        assert!(
            matches!(
                refused,
                LinkError::Protocol(FrameError::TooLarge { limit: 10_000, .. })
            ),
            "{refused:?}"
        );
        let mut answers = pair.link.send(batch_of(vec![Bytes::new(); 5])).await.unwrap();
        let mut sink = pair.server.accept().await.unwrap().answers;
        let large = sink.send(vec![answer(0, pattern(1, 10_001))]).await.unwrap_err();
        assert!(
            matches!(large, LinkError::Protocol(FrameError::TooLarge { .. })),
            "{large:?}"
        );
        let stray = sink.send(vec![answer(5, Bytes::new())]).await.unwrap_err();
        assert!(
            matches!(
                stray,
                LinkError::Protocol(FrameError::UnknownItem { item: 5, items: 5 })
            ),
            "{stray:?}"
        );
        // Several that fit one by one do not have to fit into one frame.
        let group: Vec<_> = (0..5).map(|item| answer(item, pattern(1, 9000))).collect();
        sink.send(group.clone()).await.unwrap();
        sink.finish().await.unwrap();
        assert_eq!(all_answers(&mut *answers).await.unwrap(), group);
    })
    .await;
}

#[tokio::test]
async fn a_silent_agent_loses_its_link() {
    bounded(async {
        let silent_after = Duration::from_millis(300);
        // QUIC itself stays alive; it is the agent that says nothing.
        let settings = Settings {
            heartbeat: Duration::from_secs(3600),
            silent_after,
            ..Settings::default()
        };
        let pair = quic_pair_with(settings).await;
        let mut answers = pair.link.send(batch_of([Bytes::new()])).await.unwrap();
        let _incoming = pair.server.accept().await.unwrap();
        assert!(matches!(pair.link.event().await, Ok(LinkEvent::Hello { .. })));
        assert_eq!(pair.link.event().await, Err(LinkError::Silent(silent_after)));
        assert_eq!(answers.next().await, Err(LinkError::Silent(silent_after)));
        let refused = pair.link.send(batch_of([Bytes::new()])).await.err();
        assert_eq!(refused, Some(LinkError::Silent(silent_after)));
        let seen = pair.server.accept().await.err().unwrap();
        assert_eq!(seen, LinkError::Lost("closed by the peer: silent".into()));
    })
    .await;
}

#[tokio::test]
async fn heartbeats_keep_an_idle_link() {
    bounded(async {
        let heartbeat = Duration::from_millis(50);
        let settings = Settings {
            heartbeat,
            silent_after: heartbeat * 20,
            ..Settings::default()
        };
        let pair = quic_pair_with(settings).await;
        pair.link.event().await.unwrap();
        let idle = tokio::time::timeout(heartbeat * 40, pair.link.event()).await;
        assert!(idle.is_err(), "the link ended: {idle:?}");
    })
    .await;
}

#[test]
fn a_restarted_agent_is_noticed_at_once() {
    let ca = ClusterCa::create().unwrap();
    let config = agent(&ca);
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap()
    };
    // The first life ends without a word, as a killed process does.
    let (first, second, upstream) = (runtime(), runtime(), runtime());
    let listener = first.block_on(async { QuicListener::bind(loopback(), config.clone()).unwrap() });
    let address = listener.local_addr().unwrap();
    let accepting = first.spawn(async move {
        let server = listener.accept().await;
        std::future::pending::<()>().await;
        drop((server, listener));
    });
    let gateway = ca.issue(Role::Gateway, "edge").unwrap();
    let link = upstream.block_on(async {
        // Silence is not to be the reason.
        let settings = Settings {
            silent_after: Duration::from_secs(60),
            ..Settings::default()
        };
        let connector = QuicConnector::new(&gateway, settings).unwrap();
        bounded(connector.connect(&address.to_string(), None))
            .await
            .unwrap()
    });
    drop(accepting);
    first.shutdown_timeout(Duration::from_secs(5));
    let mut next = config;
    next.incarnation = Incarnation(INCARNATION.0 + 1);
    let _listener = second.block_on(async { QuicListener::bind(address, next).unwrap() });
    let end = upstream.block_on(bounded(async {
        loop {
            if let Err(error) = link.event().await {
                break error;
            }
        }
    }));
    assert_eq!(end, LinkError::Lost("the peer has restarted".into()));
}

#[tokio::test]
async fn loopback_gets_large_packets() {
    bounded(async {
        let ca = ClusterCa::create().unwrap();
        let (address, _listener) = listen(agent(&ca));
        let link = connect(&ca.issue(Role::Gateway, "edge").unwrap(), &address)
            .await
            .unwrap();
        // Probes go out one by one, each when the one before has been answered or given up.
        while link.packet_bytes() < 6000 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(link.packet_bytes() <= 6500);
    })
    .await;
}

#[tokio::test]
async fn shutting_down_lets_closed_links_end_well() {
    bounded(async {
        let ca = ClusterCa::create().unwrap();
        let listener = QuicListener::bind(loopback(), agent(&ca)).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let gateway = ca.issue(Role::Gateway, "edge").unwrap();
        let (link, server) = tokio::join!(connect(&gateway, &address), listener.accept());
        let (link, server) = (link.unwrap(), server.unwrap());
        let batch = batch_of([pattern(1, 1_000_000)]);
        let (answers, incoming) = tokio::join!(link.send(batch.clone()), server.accept());
        let (mut answers, mut incoming) = (answers.unwrap(), incoming.unwrap());
        incoming.answers.send(echoes(&batch)).await.unwrap();
        incoming.answers.finish().await.unwrap();
        let (got, ()) = tokio::join!(all_answers(&mut *answers), async {
            server.close();
            listener.shutdown().await;
        });
        assert!(got.unwrap() == echoes(&batch), "the answers differ");
        assert!(listener.accept().await.is_none());
        connect(&gateway, &address).await.unwrap_err();
    })
    .await;
}

/// Gateways and agents of one cluster may be of different builds; one whose link is another says so.
#[tokio::test]
async fn an_agent_whose_link_is_of_another_version_is_refused_in_words() {
    let ca = ClusterCa::create().unwrap();
    let identity = ca.issue(Role::Agent, "node-1").unwrap();
    let tls = mosec_wire::tls::server_config(&identity, &[Role::Gateway], ALPN).unwrap();
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(tls).unwrap();
    let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    let endpoint = quinn::Endpoint::server(config, loopback()).unwrap();
    let address = endpoint.local_addr().unwrap().to_string();
    let newer = tokio::spawn(async move {
        let connection = endpoint.accept().await.unwrap().await.unwrap();
        let hello = Frame::Event(LinkEvent::Hello {
            node: NodeId::new("node-1").unwrap(),
            incarnation: INCARNATION,
        });
        let mut bytes = hello.encode(1024).unwrap().concat();
        bytes[4] += 1;
        let mut stream = connection.open_uni().await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        connection.closed().await
    });
    let error = connect(&ca.issue(Role::Gateway, "edge").unwrap(), &address)
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "peer broke the protocol: it speaks version 3 of the link, and this build speaks version 2: upgrade the older \
         of the two"
    );
    let closed = bounded(newer).await.unwrap();
    let quinn::ConnectionError::ApplicationClosed(close) = closed else {
        panic!("{closed:?}");
    };
    assert_eq!(Code::from_wire(close.error_code), Some(Code::Protocol));
}
