//! Connections of which a test writes and reads the bytes.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::bench::{Bench, within};

pub(crate) async fn open(bench: &Bench, first: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(bench.address).await.unwrap();
    stream.write_all(first).await.unwrap();
    stream
}

/// What comes until the gateway closes the connection.
pub(crate) async fn rest(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    within("the connection's end", async {
        let mut piece = [0; 4096];
        // A reset ends it as well.
        while let Ok(count @ 1..) = stream.read(&mut piece).await {
            read.extend_from_slice(&piece[..count]);
        }
    })
    .await;
    String::from_utf8_lossy(&read).into_owned()
}

/// What comes up to and with `end`.
pub(crate) async fn until(stream: &mut TcpStream, end: &str) -> String {
    let mut read = Vec::new();
    within("the answer's end", async {
        while !read.ends_with(end.as_bytes()) {
            read.push(stream.read_u8().await.expect("the connection goes on"));
        }
    })
    .await;
    String::from_utf8(read).unwrap()
}
