//! The admin endpoint: `/metrics` and `/healthz` of processes whose main port is not HTTP.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Series;
use crate::render::{METRICS_TYPE, render};

/// Connections at once: far more than scrapers open. More are closed.
const MAX_CONNECTIONS: usize = 64;

/// Says whether the process works, or in one line why not.
type Check = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Serves series over HTTP, and says whether the process works.
pub struct Admin {
    listener: TcpListener,
    series: Series,
    check: Check,
}

impl Admin {
    /// Binds `address`; port 0 takes any. The process counts as one that works for as long as it answers.
    pub async fn bind(address: SocketAddr, series: Series) -> std::io::Result<Self> {
        Ok(Self {
            listener: TcpListener::bind(address).await?,
            series,
            check: Arc::new(|| Ok(())),
        })
    }

    /// Has `/healthz` answer 503 while `check` gives a reason, in one line. It is asked at each request, and must not wait.
    pub fn with_health(self, check: impl Fn() -> Result<(), String> + Send + Sync + 'static) -> Self {
        Self {
            check: Arc::new(check),
            ..self
        }
    }

    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until `stop`. Connections that are open then are dropped: there is nothing to lose.
    pub async fn run(self, stop: CancellationToken) {
        let tasks = TaskTracker::new();
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let stream = tokio::select! {
                () = stop.cancelled() => return,
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        // Out of descriptors, most likely: others may close some.
                        tracing::warn!(%error, "admin endpoint cannot accept");
                        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                        continue;
                    }
                },
            };
            let Ok(place) = places.clone().try_acquire_owned() else {
                continue;
            };
            let (series, check) = (self.series.clone(), self.check.clone());
            let stop = stop.clone();
            tasks.spawn(async move {
                let service = service_fn(|request| std::future::ready(answer(&request, &series, &check)));
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(stream), service);
                tokio::select! {
                    _ = connection => {}
                    () = stop.cancelled() => {}
                }
                drop(place);
            });
        }
    }
}

fn answer(
    request: &Request<Incoming>,
    series: &Series,
    check: &Check,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, body) = match request.uri().path() {
        "/metrics" => (StatusCode::OK, render(&[series])),
        "/healthz" => match check() {
            Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
            Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
        },
        _ => (StatusCode::NOT_FOUND, String::new()),
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(
        CONTENT_TYPE,
        hyper::header::HeaderValue::from_static(METRICS_TYPE),
    );
    Ok(response)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    async fn ask(mut stream: TcpStream) -> String {
        // A connection that is refused may be closed before this is written.
        let _ = stream
            .write_all(b"GET /healthz HTTP/1.1\r\nconnection: close\r\n\r\n")
            .await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    }

    #[tokio::test]
    async fn health_is_looked_at_whenever_it_is_asked_for() {
        let admin = Admin::bind("127.0.0.1:0".parse().unwrap(), Series::default());
        let well = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let look = well.clone();
        let admin = admin.await.unwrap().with_health(move || {
            let well = look.load(std::sync::atomic::Ordering::Relaxed);
            well.then_some(()).ok_or_else(|| "it is ill".to_owned())
        });
        let address = admin.local_addr().unwrap();
        let stop = CancellationToken::new();
        let running = tokio::spawn(admin.run(stop.clone()));
        let answer = ask(TcpStream::connect(address).await.unwrap()).await;
        assert!(
            answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"),
            "{answer}"
        );
        assert!(answer.ends_with("\r\n\r\nit is ill\n"), "{answer}");
        well.store(true, std::sync::atomic::Ordering::Relaxed);
        let answer = ask(TcpStream::connect(address).await.unwrap()).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        stop.cancel();
        running.await.unwrap();
    }

    #[tokio::test]
    async fn connections_are_bounded_and_come_free() {
        let admin = Admin::bind("127.0.0.1:0".parse().unwrap(), Series::default())
            .await
            .unwrap();
        let address = admin.local_addr().unwrap();
        let stop = CancellationToken::new();
        let running = tokio::spawn(admin.run(stop.clone()));
        let mut open = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            open.push(TcpStream::connect(address).await.unwrap());
        }
        assert_eq!(ask(TcpStream::connect(address).await.unwrap()).await, "");
        let first = ask(open.remove(0)).await;
        assert!(first.starts_with("HTTP/1.1 200 OK\r\n"), "{first}");
        assert!(first.ends_with("\r\n\r\nok\n"), "{first}");
        // Its place is free a moment after its end is seen.
        while ask(TcpStream::connect(address).await.unwrap()).await.is_empty() {
            tokio::task::yield_now().await;
        }
        stop.cancel();
        running.await.unwrap();
    }
}
