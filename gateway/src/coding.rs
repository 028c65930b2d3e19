//! Content codings of bodies: gzip and zstd, in requests and in answers.

use std::io::{self, BufRead, Read};
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use hyper::HeaderMap;
use hyper::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, VARY};
use mosec_types::ErrorCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::body::{Memory, Room};
use crate::respond::HttpResponse;

/// Shorter answers become longer by a coding.
const MIN_ANSWER_BYTES: usize = 32;

/// What is coded at once; more takes longer than a task may keep its thread (about 0.3 ms for this much).
const INLINE_BYTES: usize = 8 * 1024;
/// What is decoded at once, and how much of it: a KiB of gzip may become a MiB, and one of zstd 32 MiB.
const INLINE_CODED_BYTES: usize = 1024;
const INLINE_DECODED_BYTES: usize = 32 * 1024;
/// Room taken for what is decoded elsewhere, before it is known how large it becomes.
const FIRST_BYTES: usize = 256 * 1024;

/// The largest window of zstd that is decoded, 8 MiB: what RFC 9659 lets a client expect. The library's own bound would
/// take 128 MiB for each request.
const ZSTD_WINDOW_LOG: u32 = 23;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    Gzip,
    Zstd,
}

/// Codes and decodes, as many bodies at once as there are cores.
#[derive(Clone)]
pub(crate) struct Codings(Arc<Semaphore>);

impl Codings {
    pub(crate) fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self(Arc::new(Semaphore::new(cores)))
    }

    /// A request's body as its client meant it, of at most `limit` bytes. It takes its room in `memory` step by step,
    /// before it is decoded.
    pub(crate) async fn decode(
        &self,
        coding: Coding,
        body: Bytes,
        limit: usize,
        memory: &Memory,
        room: &mut Room,
    ) -> Result<Bytes, ErrorCode> {
        let decoded = self.decode_counted(coding, body, limit, memory, room).await?;
        room.shrink(decoded.len());
        Ok(decoded)
    }

    async fn decode_counted(
        &self,
        coding: Coding,
        body: Bytes,
        limit: usize,
        memory: &Memory,
        room: &mut Room,
    ) -> Result<Bytes, ErrorCode> {
        let coded = body.len();
        if coded <= INLINE_CODED_BYTES {
            memory.grow(room, coded + INLINE_DECODED_BYTES).await?;
            let mut decoding = Decoding::new(coding, body.clone().reader(), limit)?;
            if decoding.read_to(INLINE_DECODED_BYTES)? {
                return Ok(decoding.whole());
            }
            // A decoder has memory of its own, so that none is kept without a turn: it starts again.
        }
        let mut turn = self.turn().await?;
        let mut decoding = Decoding::new(coding, body.reader(), limit)?;
        loop {
            let target = decoding.next_target();
            memory.grow(room, coded.saturating_add(target)).await?;
            let mut held = std::mem::take(room);
            let step = move || {
                let is_whole = decoding.read_to(target);
                (is_whole, decoding, turn, held)
            };
            // If the client leaves, the step goes on, with its turn and its room.
            let is_whole;
            (is_whole, decoding, turn, held) =
                tokio::task::spawn_blocking(step).await.map_err(|_| Stopped)?;
            *room = held;
            if is_whole? {
                return Ok(decoding.whole());
            }
        }
    }

    /// An answer as its client accepts it.
    pub(crate) async fn encode(&self, mut answer: HttpResponse, accepted: Option<Coding>) -> HttpResponse {
        let Some(whole) = answer.body().whole().cloned() else {
            return answer;
        };
        if whole.len() < MIN_ANSWER_BYTES || !is_compressible(answer.headers()) {
            return answer;
        }
        // Whoever keeps answers must know that this one depends on the header.
        answer
            .headers_mut()
            .insert(VARY, HeaderValue::from_static("accept-encoding"));
        let Some(coding) = accepted else {
            return answer;
        };
        match self
            .run(whole.len() <= INLINE_BYTES, move || encode(coding, &whole))
            .await
        {
            Ok(coded) => {
                *answer.body_mut() = Bytes::from(coded).into();
                let name = HeaderValue::from_static(coding.name());
                answer.headers_mut().insert(CONTENT_ENCODING, name);
            }
            // Memory, or nothing at all: the answer is right without.
            Err(error) => tracing::warn!(%error, "an answer could not be compressed"),
        }
        answer
    }

    /// Runs `work` here where it is short, else on a thread for such work.
    async fn run<T: Send + 'static, E: Send + From<Stopped> + 'static>(
        &self,
        here: bool,
        work: impl FnOnce() -> Result<T, E> + Send + 'static,
    ) -> Result<T, E> {
        if here {
            return work();
        }
        let turn = self.turn().await?;
        let work = move || {
            let result = work();
            drop(turn);
            result
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| Stopped)?
    }

    async fn turn(&self) -> Result<OwnedSemaphorePermit, Stopped> {
        self.0.clone().acquire_owned().await.map_err(|_| Stopped)
    }
}

/// The runtime ends, or the coder has panicked.
struct Stopped;

impl From<Stopped> for ErrorCode {
    fn from(_: Stopped) -> Self {
        Self::Internal
    }
}

impl From<Stopped> for io::Error {
    fn from(_: Stopped) -> Self {
        Self::other("the coder did not end")
    }
}

impl Coding {
    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    fn of(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "gzip" | "x-gzip" => Some(Self::Gzip),
            "zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    /// How a request's body is coded.
    ///
    /// Errors: in a way that is not known here, or in several.
    pub(crate) fn of_request(headers: &HeaderMap) -> Result<Option<Self>, ErrorCode> {
        let mut codings = headers.get_all(CONTENT_ENCODING).into_iter();
        let Some(value) = codings.next() else {
            return Ok(None);
        };
        let name = value.to_str().unwrap_or("").trim();
        if codings.next().is_some() {
            return Err(ErrorCode::UnsupportedCoding);
        }
        if name.eq_ignore_ascii_case("identity") {
            return Ok(None);
        }
        Self::of(name).map(Some).ok_or(ErrorCode::UnsupportedCoding)
    }

    /// Whether a client takes this coding, be it its first choice or not.
    pub(crate) fn is_accepted(self, headers: &HeaderMap) -> bool {
        weight(headers, Some(self)) > 0
    }

    /// The coding that a client likes best; of two that it likes equally well, zstd, and any before none.
    pub(crate) fn accepted(headers: &HeaderMap) -> Option<Self> {
        let offers = [Some(Self::Zstd), Some(Self::Gzip), None];
        let weights = offers.map(|offer| weight(headers, offer));
        let best = weights.into_iter().max().filter(|&best| best > 0)?;
        let index = weights.iter().position(|&weight| weight == best)?;
        offers[index]
    }
}

/// How much a client wants a coding, in thousandths. What it does not name is as good as `*`, if it names that; no coding
/// at all is the last choice unless it is named.
fn weight(headers: &HeaderMap, offer: Option<Coding>) -> u16 {
    let mut any = 0;
    for entry in entries(headers) {
        let (name, weight) = entry;
        let matches = match offer {
            Some(coding) => Coding::of(name) == Some(coding),
            None => name.eq_ignore_ascii_case("identity"),
        };
        if matches {
            return weight;
        }
        if name == "*" && offer.is_some() {
            any = weight;
        }
    }
    any
}

fn entries(headers: &HeaderMap) -> impl Iterator<Item = (&str, u16)> {
    let values = headers.get_all(ACCEPT_ENCODING).into_iter();
    let entries = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    entries.map(|entry| {
        let (name, parameters) = entry.split_once(';').unwrap_or((entry, ""));
        (name.trim(), quality(parameters))
    })
}

/// `q=0.5` in thousandths; 1 where there is none, 0 where it is not a number.
fn quality(parameters: &str) -> u16 {
    let Some(value) = parameters
        .trim()
        .strip_prefix("q=")
        .or(parameters.trim().strip_prefix("Q="))
    else {
        return 1000;
    };
    let value: f32 = value.trim().parse().unwrap_or(0.0);
    // Saturates, and makes nothing of what is no number.
    (value.clamp(0.0, 1.0) * 1000.0) as u16
}

/// Pictures and sounds are compressed as they are.
fn is_compressible(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let kind = kind.unwrap_or("").to_ascii_lowercase();
    !headers.contains_key(CONTENT_ENCODING) && (!kind.starts_with("image/") || kind.starts_with("image/svg"))
}

/// A body on its way.
struct Decoding<'a> {
    source: Box<dyn Read + Send + 'a>,
    decoded: Vec<u8>,
    limit: usize,
}

impl<'a> Decoding<'a> {
    fn new(coding: Coding, body: impl BufRead + Send + 'a, limit: usize) -> Result<Self, ErrorCode> {
        let source: Box<dyn Read + Send + 'a> = match coding {
            Coding::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(body)),
            Coding::Zstd => Box::new(zstd_source(body).map_err(|_| ErrorCode::Internal)?),
        };
        Ok(Self {
            source,
            decoded: Vec::new(),
            limit,
        })
    }

    /// How far the next step goes; beyond the limit by the byte that tells.
    fn next_target(&self) -> usize {
        let twice = self.decoded.len().saturating_mul(2).max(FIRST_BYTES);
        twice.min(self.limit.saturating_add(1))
    }

    /// Decodes up to `target` bytes in all. Whether that was the whole body.
    fn read_to(&mut self, target: usize) -> Result<bool, ErrorCode> {
        let target = target.min(self.limit.saturating_add(1));
        let wanted = target.saturating_sub(self.decoded.len());
        self.decoded.reserve_exact(wanted);
        let read = (&mut self.source)
            .take(wanted as u64)
            .read_to_end(&mut self.decoded)
            .map_err(|_| ErrorCode::BodyUnreadable)?;
        if self.decoded.len() > self.limit {
            return Err(ErrorCode::BodyTooLarge);
        }
        Ok(read < wanted)
    }

    fn whole(mut self) -> Bytes {
        self.decoded.shrink_to_fit();
        self.decoded.into()
    }
}

fn zstd_source<'a, R: BufRead>(body: R) -> io::Result<zstd::stream::read::Decoder<'a, R>> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(body)?;
    decoder.window_log_max(ZSTD_WINDOW_LOG)?;
    Ok(decoder)
}

/// Decodes at once and uncounted: for what is not a client's.
pub(crate) fn decode(coding: Coding, body: &[u8], limit: usize) -> Result<Bytes, ErrorCode> {
    let mut decoding = Decoding::new(coding, body, limit)?;
    while !decoding.read_to(decoding.next_target())? {}
    Ok(decoding.whole())
}

fn encode(coding: Coding, body: &[u8]) -> io::Result<Vec<u8>> {
    match coding {
        Coding::Gzip => {
            let mut coded = Vec::new();
            flate2::bufread::GzEncoder::new(body, flate2::Compression::default()).read_to_end(&mut coded)?;
            Ok(coded)
        }
        Coding::Zstd => zstd::stream::encode_all(body, zstd::DEFAULT_COMPRESSION_LEVEL),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(name: hyper::header::HeaderName, values: &[&str]) -> HeaderMap {
        let pairs = values.iter().map(|value| (name.clone(), value.parse().unwrap()));
        pairs.collect()
    }

    #[test]
    fn accepted_codings_table() {
        for (values, expected) in [
            (&[][..], None),
            (&[""], None),
            (&["gzip"], Some(Coding::Gzip)),
            (&["GZIP"], Some(Coding::Gzip)),
            (&["gzip, zstd"], Some(Coding::Zstd)),
            (&["gzip", "zstd"], Some(Coding::Zstd)),
            (&["gzip, zstd;q=0"], Some(Coding::Gzip)),
            (&["gzip;q=0.9,zstd; q=0.5"], Some(Coding::Gzip)),
            (&["*"], Some(Coding::Zstd)),
            (&["*, zstd;q=0"], Some(Coding::Gzip)),
            (&["*;q=0"], None),
            (&["gzip;q=0"], None),
            (&["br, deflate"], None),
            (&["identity, gzip;q=0.5"], None),
            (&["identity;q=0.5, gzip;q=0.5"], Some(Coding::Gzip)),
            (&["gzip;q=x"], None),
            (&["gzip;q=nan"], None),
        ] {
            let headers = headers(ACCEPT_ENCODING, values);
            assert_eq!(Coding::accepted(&headers), expected, "{values:?}");
        }
    }

    #[test]
    fn request_codings_table() {
        let unsupported = Err(ErrorCode::UnsupportedCoding);
        for (values, expected) in [
            (&[][..], Ok(None)),
            (&["identity"], Ok(None)),
            (&["gzip"], Ok(Some(Coding::Gzip))),
            (&["Zstd"], Ok(Some(Coding::Zstd))),
            (&["br"], unsupported),
            (&[""], unsupported),
            (&["gzip, gzip"], unsupported),
            (&["gzip", "gzip"], unsupported),
        ] {
            let headers = headers(CONTENT_ENCODING, values);
            assert_eq!(Coding::of_request(&headers), expected, "{values:?}");
        }
    }

    #[test]
    fn a_window_beyond_the_bound_is_not_decoded() {
        let body = vec![b'x'; 1 << 20];
        for (log, decodes) in [(23, true), (24, false)] {
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
            encoder.window_log(log).unwrap();
            std::io::Write::write_all(&mut encoder, &body).unwrap();
            let coded = encoder.finish().unwrap();
            assert_eq!(decode(Coding::Zstd, &coded, 1 << 20).is_ok(), decodes, "{log}");
        }
    }

    fn memory(bytes: u64) -> Memory {
        Memory::new(&crate::config::Config {
            max_body_bytes: bytes,
            ..Default::default()
        })
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_decoded_without_room() {
        // The one with few bytes is decoded at once, the other one elsewhere.
        for size in [10, 1 << 20] {
            for coding in [Coding::Gzip, Coding::Zstd] {
                let body = Bytes::from(encode(coding, &vec![b'x'; size]).unwrap());
                let memory = memory(4 << 20);
                let (codings, mut room) = (Codings::new(), Room::default());
                let decoded = codings
                    .decode(coding, body.clone(), size, &memory, &mut room)
                    .await;
                assert_eq!(decoded.unwrap().len(), size);
                assert_eq!(memory.used_bytes(), size.next_multiple_of(1024));
                drop(room);
                // Of others there is so much that this one fits only in part, if at all.
                let (mut others, mut room) = (Room::default(), Room::default());
                let left = if size == 10 { 0 } else { size / 2 };
                memory.grow(&mut others, (4 << 20) - left).await.unwrap();
                let refused = codings.decode(coding, body, size, &memory, &mut room).await;
                assert_eq!(refused, Err(ErrorCode::BodyMemory), "{size} {coding:?}");
            }
        }
    }

    #[test]
    fn no_step_takes_more_than_its_room() {
        for coding in [Coding::Gzip, Coding::Zstd] {
            let coded = encode(coding, &vec![b'x'; 4 << 20]).unwrap();
            let mut decoding = Decoding::new(coding, &coded[..], usize::MAX).unwrap();
            for target in [INLINE_DECODED_BYTES, FIRST_BYTES, 1 << 20] {
                assert!(!decoding.read_to(target).unwrap());
                assert_eq!(
                    (decoding.decoded.len(), decoding.decoded.capacity()),
                    (target, target)
                );
            }
        }
    }

    fn coding() -> impl Strategy<Value = Coding> {
        prop_oneof![Just(Coding::Gzip), Just(Coding::Zstd)]
    }

    proptest! {
        #[test]
        fn what_is_coded_comes_back_up_to_the_limit(
            coding in coding(), pieces in proptest::collection::vec((any::<u8>(), 0usize..300), 0..20),
        ) {
            let body: Vec<u8> = pieces.iter().flat_map(|&(byte, times)| vec![byte; times]).collect();
            let coded = encode(coding, &body).unwrap();
            prop_assert_eq!(decode(coding, &coded, body.len()).unwrap(), &body);
            if let Some(less) = body.len().checked_sub(1) {
                prop_assert_eq!(decode(coding, &coded, less), Err(ErrorCode::BodyTooLarge));
            }
            // Two in a row are one body.
            let twice = [coded.clone(), coded.clone()].concat();
            prop_assert_eq!(decode(coding, &twice, body.len() * 2).unwrap(), [body.clone(), body].concat());
            // A broken one is an error, not a panic and not a part.
            prop_assert_eq!(decode(coding, &coded[..coded.len() - 1], usize::MAX), Err(ErrorCode::BodyUnreadable));
        }

        #[test]
        fn noise_is_refused(coding in coding(), noise in proptest::collection::vec(any::<u8>(), 1..200)) {
            // Noise may be a valid, even an empty, frame by chance; it never panics.
            let _ = decode(coding, &noise, 1000);
        }
    }
}
