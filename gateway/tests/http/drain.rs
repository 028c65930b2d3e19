//! How a gateway stops: nobody new, and those inside are answered.

use std::time::Duration;

use mosec_gateway::Config;
use mosec_types::topology::Phase;
use mosec_types::{ErrorCode, PipelineSpec};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::bench::{Bench, ONE, answer, deployment, eventually, key, only, spec, topology, within};
use crate::client::{BOTH, Version, body};

#[tokio::test]
async fn a_drain_refuses_the_new_and_finishes_the_old() {
    for version in BOTH {
        let bench = Bench::start(spec()).await;
        let idle = bench.client(version).await;
        let in_flight = bench.post(version, "1");
        let (request, _credit) = only(bench.batch().await);
        let mut old = bench.client(version).await;
        assert_eq!(old.request("GET", "/", body("")).await.status, 200);

        bench.stop.cancel();
        eventually("the gateway drains", async || {
            bench
                .client(version)
                .await
                .request("GET", "/", body(""))
                .await
                .status
                == 503
        })
        .await;
        // Connections that were open and those that come now read the same.
        for mut client in [old, bench.client(version).await] {
            let plain = Some("text/plain; charset=utf-8");
            for (method, path, mime) in [("GET", "/", plain), ("POST", "/inference", None)] {
                let refused = client.request(method, path, body("{}")).await;
                assert_eq!(
                    (refused.status.as_u16(), refused.text()),
                    (503, "gracefully shutting down")
                );
                assert_eq!(
                    (refused.header("retry-after"), refused.header("content-type")),
                    (Some("1"), mime)
                );
            }
            let head = client.request("HEAD", "/", body("")).await;
            assert_eq!((head.status.as_u16(), head.text()), (503, ""));
            assert_eq!(client.request("GET", "/metrics", body("")).await.status, 200);
            assert_eq!(client.request("POST", "/unknown", body("")).await.status, 404);
        }
        assert!(!bench.running.is_finished());

        answer(request, ErrorCode::Ok, "result");
        assert_eq!(in_flight.await.unwrap().text(), "result", "{version:?}");
        within("end of the gateway", bench.running)
            .await
            .unwrap()
            .unwrap();
        assert!(
            TcpStream::connect(bench.address).await.is_err(),
            "the port is free again"
        );
        drop(idle);
    }
}

fn short_drain(timeout: Duration) -> (Config, PipelineSpec) {
    let config = Config {
        drain_timeout: Duration::from_millis(50),
        ..Default::default()
    };
    (config, PipelineSpec { timeout, ..spec() })
}

#[tokio::test]
async fn a_drain_ends_at_its_limit() {
    let (config, spec) = short_drain(Duration::from_millis(50));
    let bench = Bench::with_config(config, topology(1, vec![deployment(1, spec, Phase::Serving)])).await;
    // A body that never ends: everything else ends at its deadline.
    let mut stalled = TcpStream::connect(bench.address).await.unwrap();
    stalled
        .write_all(b"POST /inference HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n123")
        .await
        .unwrap();
    eventually("it is in flight", async || bench.in_flight().await == 1.0).await;
    bench.stop.cancel();
    within("end of the gateway", bench.running)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_drain_lasts_as_long_as_a_request_may() {
    let (config, spec) = short_drain(Duration::from_secs(20));
    let bench = Bench::with_config(config, topology(1, vec![deployment(1, spec, Phase::Serving)])).await;
    eventually("the stage is there", async || {
        bench.registry.dispatcher(key(1, 0)).is_some()
    })
    .await;
    bench.grant(key(1, 0), ONE);
    let in_flight = bench.post(Version::Http1, "1");
    let (request, _credit) = only(bench.batch().await);
    bench.stop.cancel();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!bench.running.is_finished(), "beyond the drain's own limit");
    answer(request, ErrorCode::Ok, "result");
    assert_eq!(in_flight.await.unwrap().text(), "result");
    within("end of the gateway", bench.running)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_port_in_use_is_an_error_that_names_it() {
    let bench = Bench::start(spec()).await;
    let config = Config {
        address: "127.0.0.1".into(),
        port: bench.address.port(),
        ..Default::default()
    };
    let series = mosec_telemetry::Series::default();
    let Err(error) = mosec_gateway::Gateway::bind(config, bench.registry.clone(), series).await else {
        panic!("two gateways on one port");
    };
    assert_eq!(error.to_string(), format!("cannot listen on {}", bench.address));
}
