//! An HTTP client of one connection, of either version.

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use hyper::body::Frame;
use hyper::client::conn::{http1, http2};
use hyper::header::HeaderMap;
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::bench::within;

pub(crate) type Body = BoxBody<Bytes, Infallible>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    Http1,
    /// With prior knowledge: the first bytes say so.
    Http2,
}

pub(crate) const BOTH: [Version; 2] = [Version::Http1, Version::Http2];

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub(crate) fn text(&self) -> &str {
        str::from_utf8(&self.body).unwrap()
    }
}

enum Sender {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

/// One connection. Dropping it closes it, whatever is in flight.
pub(crate) struct Client {
    sender: Sender,
    address: SocketAddr,
    connection: JoinHandle<()>,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr, version: Version) -> Self {
        let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let (sender, connection) = match version {
            Version::Http1 => {
                let (sender, connection) = http1::handshake(stream).await.unwrap();
                // How a connection ends is seen by its requests.
                (
                    Sender::Http1(sender),
                    tokio::spawn(async { drop(connection.await) }),
                )
            }
            Version::Http2 => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
                (
                    Sender::Http2(sender),
                    tokio::spawn(async { drop(connection.await) }),
                )
            }
        };
        Self {
            sender,
            address,
            connection,
        }
    }

    pub(crate) async fn request(&mut self, method: &str, path: &str, body: Body) -> Answer {
        self.send(method, path, &[], body).await
    }

    pub(crate) async fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> Answer {
        let mut request = Request::builder().method(method);
        request = match self.sender {
            Sender::Http1(_) => request.uri(path).header("host", self.address.to_string()),
            Sender::Http2(_) => request.uri(format!("http://{}{path}", self.address)),
        };
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body).unwrap();
        let answer = async {
            let response = match &mut self.sender {
                Sender::Http1(sender) => {
                    sender.ready().await.unwrap();
                    sender.send_request(request).await.unwrap()
                }
                Sender::Http2(sender) => {
                    sender.ready().await.unwrap();
                    sender.send_request(request).await.unwrap()
                }
            };
            let (parts, body) = response.into_parts();
            Answer {
                status: parts.status,
                headers: parts.headers,
                body: body.collect().await.unwrap().to_bytes(),
            }
        };
        within("an answer", answer).await
    }
}

impl Client {
    /// Waits until the gateway has closed the connection.
    pub(crate) async fn closed(&mut self) {
        // An aborted or failed connection has ended, too.
        let _ = (&mut self.connection).await;
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// A body whose length is known.
pub(crate) fn body(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed()
}

/// A body whose length is not: chunked in HTTP/1.1.
pub(crate) fn chunks(chunks: impl IntoIterator<Item = Bytes>) -> Body {
    let frames: Vec<_> = chunks
        .into_iter()
        .map(|chunk| Ok::<_, Infallible>(Frame::data(chunk)))
        .collect();
    StreamBody::new(stream::iter(frames)).boxed()
}
