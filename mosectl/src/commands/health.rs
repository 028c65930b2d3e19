//! `mosectl health`: whether one process works, for the health checks of containers and services.

use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::Request;
use hyper::header::HOST;
use hyper_util::rt::TokioIo;
use mosec_wire::control::port_of;
use tokio::net::TcpStream;

use crate::failure::Result;
use crate::terminal;

/// Most bytes of an answer that are read: it is a word or a sentence.
const MAX_ANSWER_BYTES: usize = 16 << 10;

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  mosectl health 127.0.0.1:9400            a member or an agent, by its --admin address
  mosectl health 127.0.0.1:8000            a gateway, by the port that clients use")]
pub(crate) struct Args {
    /// Admin address of a member or an agent, or address of a gateway, as host:port.
    #[arg(value_parser = |text: &str| port_of(text).map(|_| text.to_owned()))]
    address: String,
    /// Seconds to wait for its answer.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=60))]
    timeout: u64,
}

pub(crate) async fn run(args: Args) -> Result {
    let limit = Duration::from_secs(args.timeout);
    let answer = match tokio::time::timeout(limit, ask(&args.address)).await {
        Ok(answer) => answer,
        Err(_) => Err(anyhow!("no answer within {limit:?}")),
    };
    let answer = answer.with_context(|| format!("{} is not healthy", args.address))?;
    Ok(terminal::print(&format!("{answer}\n"))?)
}

/// What it says of itself. An error where it is not well, or does not answer.
async fn ask(address: &str) -> anyhow::Result<String> {
    // A gateway has its admin pages on its only port; `/healthz` there may be a pipeline's path.
    let (status, text) = get(address, "/healthz").await?;
    if status == hyper::StatusCode::NOT_FOUND {
        let (status, text) = get(address, "/").await?;
        return told(status, text);
    }
    told(status, text)
}

fn told(status: hyper::StatusCode, text: String) -> anyhow::Result<String> {
    if !status.is_success() {
        bail!("it answers {status}: {text}");
    }
    Ok(text)
}

async fn get(address: &str, path: &str) -> anyhow::Result<(hyper::StatusCode, String)> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends with its answer, or with this process.
    tokio::spawn(connection);
    let request = Request::get(path)
        .header(HOST, address)
        .body(Empty::<Bytes>::new())?;
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
    let body = body
        .map_err(|error| anyhow!("its answer breaks off: {error}"))?
        .to_bytes();
    Ok((status, String::from_utf8_lossy(&body).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use mosec_telemetry::Admin;
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[tokio::test]
    async fn a_process_is_healthy_that_says_so() {
        let admin = Admin::bind("127.0.0.1:0".parse().unwrap(), mosec_telemetry::Series::default());
        let admin = admin.await.unwrap();
        let address = admin.local_addr().unwrap().to_string();
        let stop = CancellationToken::new();
        let running = tokio::spawn(admin.run(stop.clone()));
        assert_eq!(ask(&address).await.unwrap(), "ok");
        stop.cancel();
        running.await.unwrap();
        let error = run(Args { address, timeout: 2 }).await.unwrap_err().to_string();
        assert!(
            error.contains(" is not healthy") && error.contains("refused"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn one_that_does_not_answer_is_not_healthy() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = silent.local_addr().unwrap().to_string();
        let error = run(Args { address, timeout: 1 }).await.unwrap_err().to_string();
        assert!(error.contains("no answer within 1s"), "{error}");
    }

    #[tokio::test]
    async fn one_that_says_why_is_not_healthy() {
        let admin = Admin::bind("127.0.0.1:0".parse().unwrap(), mosec_telemetry::Series::default());
        let admin = admin.await.unwrap().with_health(|| Err("it drains".into()));
        let address = admin.local_addr().unwrap().to_string();
        let stop = CancellationToken::new();
        let running = tokio::spawn(admin.run(stop.clone()));
        let error = run(Args { address, timeout: 2 }).await.unwrap_err().to_string();
        let reason = " is not healthy\n  because: it answers 503 Service Unavailable: it drains";
        assert!(error.ends_with(reason), "{error}");
        stop.cancel();
        running.await.unwrap();
    }
}
