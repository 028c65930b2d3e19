//! `mosectl health`: whether one process works, for the health checks of containers and services.

use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::header::HOST;
use hyper::{Request, StatusCode};
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
    let (status, text) = get(address, "/healthz").await?;
    // A gateway of an earlier build has no such page, or a pipeline's route there, which is not for GET.
    if matches!(status, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED) {
        let (status, text) = get(address, "/").await?;
        return told(status, text);
    }
    told(status, text)
}

fn told(status: StatusCode, text: String) -> anyhow::Result<String> {
    if !status.is_success() {
        bail!("it answers {status}: {text}");
    }
    Ok(text)
}

async fn get(address: &str, path: &str) -> anyhow::Result<(StatusCode, String)> {
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
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
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
    async fn one_without_the_page_is_asked_for_its_first() {
        for status in ["404 Not Found", "405 Method Not Allowed"] {
            let gateway = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = gateway.local_addr().unwrap().to_string();
            let serving = tokio::spawn(async move {
                for (path, status, text) in [("/healthz", status, ""), ("/", "200 OK", "MOSEC service")] {
                    let (mut stream, _) = gateway.accept().await.unwrap();
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        head.push(stream.read_u8().await.unwrap());
                    }
                    let asked = format!("GET {path} HTTP/1.1\r\n");
                    assert!(head.starts_with(asked.as_bytes()), "{path}");
                    let length = text.len();
                    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{text}");
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            });
            assert_eq!(ask(&address).await.unwrap(), "MOSEC service", "{status}");
            serving.await.unwrap();
        }
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
