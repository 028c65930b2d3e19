//! Hot path. The headers of a client's request that go with it to the workers which ask for them. Pure.

use bytes::Bytes;
use hyper::HeaderMap;
use hyper::header::HeaderName;
use mosec_types::spec::MAX_HEADER_BYTES;

/// The headers of these names, as [`mosec_wire::Item::headers`] has them. Of one that comes several times, every value.
///
/// They fit into [`MAX_HEADER_BYTES`], as the whole head of a request does; should they ever not, the last are left out.
pub(crate) fn collect(names: &[HeaderName], headers: &HeaderMap) -> Bytes {
    let mut lines = Vec::new();
    for name in names {
        for value in headers.get_all(name) {
            let line = [name.as_str().as_bytes(), b":", value.as_bytes(), b"\n"];
            if lines.len() + line.iter().map(|part| part.len()).sum::<usize>() > MAX_HEADER_BYTES {
                return lines.into();
            }
            lines.extend(line.into_iter().flatten());
        }
    }
    lines.into()
}

#[cfg(test)]
mod tests {
    use hyper::header::{ACCEPT, COOKIE, HeaderValue, USER_AGENT};

    use super::*;

    #[test]
    fn every_value_of_the_names_asked_for() {
        let mut headers = HeaderMap::new();
        headers.append(ACCEPT, HeaderValue::from_static("a/b"));
        headers.append(USER_AGENT, HeaderValue::from_static("someone"));
        headers.append(ACCEPT, HeaderValue::from_bytes(b"c: \xe9").unwrap());
        assert_eq!(
            collect(&[ACCEPT, COOKIE], &headers),
            b"accept:a/b\naccept:c: \xe9\n"[..]
        );
        assert_eq!(collect(&[], &headers), b""[..]);
    }

    #[test]
    fn they_stay_within_their_bound() {
        let mut headers = HeaderMap::new();
        headers.append(ACCEPT, HeaderValue::from_bytes(&[b'x'; 100]).unwrap());
        let long = vec![b'x'; MAX_HEADER_BYTES];
        headers.append(ACCEPT, HeaderValue::from_bytes(&long).unwrap());
        assert_eq!(collect(&[ACCEPT], &headers).len(), "accept:\n".len() + 100);
    }
}
