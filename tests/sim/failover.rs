//! How long writes are away when a leader is killed.

use std::time::{Duration, Instant};

use mosec_wire::control::proto;

use crate::processes::Members;
use crate::report;

/// Between tries of a client that waits for writes to be back: what is measured is no finer.
const TRY_EVERY: Duration = Duration::from_millis(10);
/// A try that takes longer has met the dead leader.
const TRY_FOR: Duration = Duration::from_millis(500);

/// `make failover`: kills so many leaders as `FAILOVERS` says.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes; writes FAILOVER.md"]
async fn leaders_are_killed_one_after_the_other() {
    let count = std::env::var("FAILOVERS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(50);
    let mut members = Members::start(3).await;
    let client = members.client();
    let mut times = Vec::new();
    for number in 0..count {
        let leader = members.level(&client).await;
        members.kill(leader);
        times.push((until_written(&members, number).await, leader));
        println!(
            "{number}: leader {leader} killed, writes back after {:?}",
            times[times.len() - 1].0
        );
        members.run(leader);
    }
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let text = describe(&mut times, load.split(' ').next().unwrap_or("unknown"));
    report::write("FAILOVER.md", &text);
    println!("{text}");
}

/// Time until one of the members that are left has a write committed.
async fn until_written(members: &Members, number: u64) -> Duration {
    let killed = Instant::now();
    let services: Vec<_> = members
        .running()
        .into_iter()
        .map(|member| members.service(member))
        .collect();
    for incarnation in 1.. {
        for service in &services {
            let request = proto::RegisterNodeRequest {
                id: format!("n{number}"),
                incarnation,
                address: "host:7443".into(),
                labels: Default::default(),
                ..Default::default()
            };
            let answer = tokio::time::timeout(TRY_FOR, service.clone().register_node(request)).await;
            if matches!(answer, Ok(Ok(_))) {
                return killed.elapsed();
            }
        }
        tokio::time::sleep(TRY_EVERY).await;
    }
    unreachable!("numbers do not end")
}

/// The distribution, with a bar for each quarter of a second.
fn describe(times: &mut [(Duration, u64)], load: &str) -> String {
    times.sort();
    let at = |part: f64| {
        times[((times.len() - 1) as f64 * part).round() as usize]
            .0
            .as_secs_f64()
    };
    let mut text = format!(
        "# Writes after the loss of a leader\n\nWritten by `make failover` on {}: {} leaders of three members killed with \
         SIGKILL, default times, all processes on one machine with {} cores and a load average of {load}.\n\n\
         Time from the kill until a write is acknowledged: median {:.2} s, nine in ten within {:.2} s, worst {:.2} s.\n\n\
         | seconds | leaders |\n|---|---|\n",
        report::today(),
        times.len(),
        std::thread::available_parallelism().map_or(1, usize::from),
        at(0.5),
        at(0.9),
        at(1.0),
    );
    let bin = |time: Duration| time.as_millis() / 250;
    let (first, last) = (bin(times[0].0), bin(times[times.len() - 1].0));
    for number in first..=last {
        let count = times.iter().filter(|(time, _)| bin(*time) == number).count();
        let (from, to) = (number as f64 / 4.0, (number + 1) as f64 / 4.0);
        text += &format!("| {from:.2} to {to:.2} | {count} {} |\n", "#".repeat(count));
    }
    text
}
