//! An HTTP client with keep-alive, as services have it.

use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{HeaderMap, Method, Request};
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;

/// Longest any request of a test may take; the services' own deadlines are shorter.
const LIMIT: Duration = Duration::from_secs(60);

/// Sends requests to one gateway. Clones share its connections.
#[derive(Clone)]
pub struct Client {
    inner: legacy::Client<HttpConnector, Full<Bytes>>,
    base: String,
}

/// What a request was answered.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Client {
    /// `address`: host:port of a gateway.
    pub fn new(address: &str) -> Self {
        let inner = legacy::Client::builder(TokioExecutor::new()).build_http();
        Self {
            inner,
            base: format!("http://{address}"),
        }
    }

    pub async fn post(&self, path: &str, body: impl Into<Bytes>) -> anyhow::Result<Answer> {
        self.send(Method::POST, path, &[], body.into()).await
    }

    pub async fn get(&self, path: &str) -> anyhow::Result<Answer> {
        self.send(Method::GET, path, &[], Bytes::new()).await
    }

    /// Sends a request that is answered with a stream of events.
    pub async fn stream(&self, path: &str, body: impl Into<Bytes>) -> anyhow::Result<EventReader> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("{}{path}", self.base));
        let sent = self.inner.request(request.body(Full::new(body.into()))?);
        let response = tokio::time::timeout(LIMIT, sent)
            .await
            .context("no answer within the limit")??;
        anyhow::ensure!(response.status() == 200, "answered {}", response.status());
        Ok(EventReader {
            body: response.into_body(),
            unread: Vec::new(),
        })
    }

    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> anyhow::Result<Answer> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body))?;
        let exchange = async {
            let response = self.inner.request(request).await?;
            let (parts, body) = response.into_parts();
            let body = body.collect().await?.to_bytes();
            anyhow::Ok(Answer {
                status: parts.status.as_u16(),
                headers: parts.headers,
                body,
            })
        };
        tokio::time::timeout(LIMIT, exchange)
            .await
            .context("no answer within the limit")?
    }
}

/// Reads a stream of events. Dropping it leaves.
pub struct EventReader {
    body: Incoming,
    unread: Vec<u8>,
}

impl EventReader {
    /// The next event's lines, without the empty one that ends it; `None` at the end of the stream.
    pub async fn next(&mut self) -> anyhow::Result<Option<String>> {
        loop {
            let end = self.unread.windows(2).position(|bytes| bytes == b"\n\n");
            if let Some(end) = end {
                let event = String::from_utf8(self.unread.drain(..end + 2).collect())?;
                // What comes in a pause only says that the stream goes on.
                if event != ":\n\n" {
                    return Ok(Some(event.trim_end().to_owned()));
                }
                continue;
            }
            let frame = tokio::time::timeout(LIMIT, self.body.frame()).await;
            match frame.context("no event within the limit")? {
                Some(frame) => self
                    .unread
                    .extend(frame?.into_data().ok().context("not a frame of data")?),
                None => return Ok(None),
            }
        }
    }
}

impl Answer {
    pub fn json(&self) -> anyhow::Result<serde_json::Value> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("{} with a body that is no JSON: {:?}", self.status, self.body))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}
