//! Connections of the one port: TCP, the TLS handshake, and who is at the other end.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Stream, stream};
use mosec_wire::control::ALPN;
use mosec_wire::tls::{LiveIdentity, TlsError, open_server_config};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::access::Caller;

/// Handshakes in progress, beyond which new connections are closed. Each takes some 30 KiB, and those that send nothing
/// stay until their time is over.
const MAX_HANDSHAKES: usize = 1024;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
/// Connections without a certificate at once. Joining is rare, and takes one connection.
const MAX_STRANGERS: usize = 32;
/// How long a connection without a certificate may last: joining takes a write and a signature.
const STRANGER_TIME: Duration = Duration::from_secs(30);
/// Pause after an accept that failed: out of descriptors, most likely, and others may close some.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A connection and who is at its other end.
pub(crate) struct Connection {
    stream: Transport,
    caller: Caller,
    /// Ends a connection of a stranger in time.
    limit: Option<Limit>,
}

enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

struct Limit {
    ends: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

/// How connections are made; plain text without `tls`.
struct Door {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    strangers: Arc<Semaphore>,
    handshakes: JoinSet<Option<Connection>>,
}

/// The connections that arrive, once it is known who they come from. Never fails, never ends.
pub(crate) fn connections(
    listener: TcpListener,
    identity: Option<LiveIdentity>,
) -> Result<impl Stream<Item = io::Result<Connection>> + Send, TlsError> {
    let tls = identity
        .map(|identity| open_server_config(identity, ALPN))
        .transpose()?;
    let door = Door {
        listener,
        tls: tls.map(|config| TlsAcceptor::from(Arc::new(config))),
        strangers: Arc::new(Semaphore::new(MAX_STRANGERS)),
        handshakes: JoinSet::new(),
    };
    Ok(stream::unfold(door, |mut door| async {
        let connection = door.next().await;
        Some((Ok(connection), door))
    }))
}

impl Door {
    async fn next(&mut self) -> Connection {
        loop {
            tokio::select! {
                Some(ended) = self.handshakes.join_next() => {
                    if let Ok(Some(connection)) = ended {
                        return connection;
                    }
                }
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, address)) => {
                        let _ = stream.set_nodelay(true); // slower without it, not wrong
                        let Some(tls) = self.tls.clone() else {
                            return Connection::plain(stream);
                        };
                        if self.handshakes.len() >= MAX_HANDSHAKES {
                            tracing::debug!(%address, "connection closed: too many handshakes in progress");
                            continue;
                        }
                        let strangers = self.strangers.clone();
                        self.handshakes.spawn(async move {
                            let shaken = timeout(HANDSHAKE_TIMEOUT, shake_hands(&tls, stream, strangers)).await;
                            let shaken = shaken.unwrap_or_else(|_| Err("it took too long".into()));
                            shaken.inspect_err(|error| tracing::debug!(%address, %error, "handshake failed")).ok()
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept connections");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }
}

async fn shake_hands(
    tls: &TlsAcceptor,
    stream: TcpStream,
    strangers: Arc<Semaphore>,
) -> Result<Connection, Box<dyn std::error::Error + Send + Sync>> {
    let stream = tls.accept(stream).await?;
    let caller = Caller::of_chain(stream.get_ref().1.peer_certificates())?;
    let limit = match caller {
        Caller::Stranger => Some(Limit {
            _place: strangers
                .try_acquire_owned()
                .map_err(|_| "too many connections without a certificate")?,
            ends: Box::pin(sleep(STRANGER_TIME)),
        }),
        Caller::Unchecked | Caller::Peer(_) => None,
    };
    Ok(Connection {
        stream: Transport::Tls(Box::new(stream)),
        caller,
        limit,
    })
}

impl Connection {
    fn plain(stream: TcpStream) -> Self {
        Self {
            stream: Transport::Plain(stream),
            caller: Caller::Unchecked,
            limit: None,
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(limit) = &mut self.limit
            && limit.ends.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        match &mut self.stream {
            Transport::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Transport::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Transport::Plain(stream) => Pin::new(stream).poll_write(context, data),
            Transport::Tls(stream) => Pin::new(stream).poll_write(context, data),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Transport::Plain(stream) => Pin::new(stream).poll_flush(context),
            Transport::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Transport::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Transport::Plain(stream) => Pin::new(stream).poll_write_vectored(context, data),
            Transport::Tls(stream) => Pin::new(stream).poll_write_vectored(context, data),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Transport::Plain(stream) => stream.is_write_vectored(),
            Transport::Tls(stream) => stream.is_write_vectored(),
        }
    }
}
