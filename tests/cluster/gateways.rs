//! Which gateways people are told of.

use std::time::Duration;

use mosec_tests::{Cluster, Options};
use rustix::process::Signal;

/// Within which the status tells the truth of a gateway.
const TOLD_WITHIN: Duration = Duration::from_secs(5);

fn expected(gateways: &[(&str, &str)]) -> Vec<(String, String)> {
    gateways
        .iter()
        .map(|(name, health)| ((*name).into(), (*health).into()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_tells_a_lost_gateway_from_one_that_was_ended() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options {
        gateways: 3,
        agents: Vec::new(),
        ..Options::default()
    })
    .await?;
    // Nobody has deployed or asked anything: they report all the same.
    let three = expected(&[("gateway-0", "up"), ("gateway-1", "up"), ("gateway-2", "up")]);
    cluster
        .until("three gateways are up", TOLD_WITHIN, |status| {
            status.gateways() == three
        })
        .await?;
    cluster.gateways[1].kill()?;
    let lost = expected(&[("gateway-0", "up"), ("gateway-1", "lost"), ("gateway-2", "up")]);
    cluster
        .until("one is lost", TOLD_WITHIN, |status| status.gateways() == lost)
        .await?;
    cluster.gateways[2].signal(Signal::TERM)?;
    assert_eq!(cluster.gateways[2].ended(Duration::from_secs(20)).await?, Some(0));
    let ended = expected(&[("gateway-0", "up"), ("gateway-1", "lost")]);
    assert_eq!(cluster.status()?.gateways(), ended);
    cluster.restart_gateway(1).await?;
    let back = expected(&[("gateway-0", "up"), ("gateway-1", "up")]);
    cluster
        .until("the lost one is back", TOLD_WITHIN, |status| {
            status.gateways() == back
        })
        .await?;
    // A new leader is told of those that are there.
    let leader = cluster.leader()?;
    cluster.control.get_mut(&leader).expect("it leads").kill()?;
    cluster
        .until("the next leader knows both", Duration::from_secs(10), |status| {
            status.leader() != Some(leader) && status.gateways() == back
        })
        .await?;
    cluster.end();
    Ok(())
}
