//! Bounded load with distinct payloads, every answer checked against its own request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::task::JoinSet;

use crate::{Answer, Client};

/// What to send.
#[derive(Clone)]
pub struct Load {
    pub client: Client,
    pub path: String,
    pub concurrency: usize,
    /// Most requests in all.
    pub requests: u64,
    /// What else has to hold of an answer.
    pub check: fn(&Value) -> Result<(), String>,
}

/// What came back.
#[derive(Debug, Default)]
pub struct Report {
    /// Requests answered with their own result.
    pub answered: u64,
    /// What was wrong with the others; the first twenty.
    pub wrong: Vec<String>,
    pub wrong_count: u64,
    /// Latencies, sorted.
    pub latencies: Vec<Duration>,
}

/// A load that runs.
pub struct Running {
    tasks: JoinSet<Report>,
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Load {
    /// As much load as a test needs that ends it itself.
    pub fn of(client: Client, path: &str) -> Self {
        Self {
            client,
            path: path.into(),
            concurrency: 64,
            requests: 200_000,
            check: |_| Ok(()),
        }
    }

    /// Starts sending. Each request carries its own number, which its answer has to carry too.
    pub fn start(self) -> Running {
        let sent = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for _ in 0..self.concurrency {
            tasks.spawn(send_all(self.clone(), sent.clone(), stop.clone()));
        }
        Running { tasks, sent, stop }
    }
}

impl Running {
    /// Requests sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Sends no more.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Waits for every answer.
    pub async fn finish(mut self) -> Report {
        let mut total = Report::default();
        while let Some(report) = self.tasks.join_next().await {
            total.add(report.expect("a sender does not panic"));
        }
        total.latencies.sort();
        total
    }
}

impl Report {
    fn add(&mut self, other: Self) {
        self.answered += other.answered;
        self.wrong_count += other.wrong_count;
        self.latencies.extend(other.latencies);
        self.wrong.extend(other.wrong);
        self.wrong.truncate(20);
    }

    /// The latency below which this part of the requests was.
    pub fn quantile(&self, part: f64) -> Duration {
        let last = self.latencies.len().saturating_sub(1);
        let at = (last as f64 * part).round() as usize;
        self.latencies.get(at).copied().unwrap_or_default()
    }
}

async fn send_all(load: Load, sent: Arc<AtomicU64>, stop: Arc<AtomicBool>) -> Report {
    let mut report = Report::default();
    while !stop.load(Ordering::Relaxed) {
        let number = sent.fetch_add(1, Ordering::Relaxed);
        if number >= load.requests {
            break;
        }
        let started = Instant::now();
        let answer = load
            .client
            .post(&load.path, format!("{{\"id\": {number}}}"))
            .await;
        report.latencies.push(started.elapsed());
        match check(number, answer, load.check) {
            Ok(()) => report.answered += 1,
            Err(wrong) => {
                report.wrong_count += 1;
                report.wrong.push(wrong);
            }
        }
    }
    report
}

fn check(
    number: u64,
    answer: anyhow::Result<Answer>,
    also: fn(&Value) -> Result<(), String>,
) -> Result<(), String> {
    let answer = answer.map_err(|error| format!("request {number}: {error:#}"))?;
    let json = answer
        .json()
        .map_err(|error| format!("request {number}: {error:#}"))?;
    if answer.status == 200 && json["id"] == number {
        return also(&json).map_err(|error| format!("request {number}: {error}"));
    }
    Err(format!("request {number}: {} {}", answer.status, answer.text()))
}
