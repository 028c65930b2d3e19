//! Hot path. Texts and floats in JSON, character by character as the standard library of Python writes them.

/// Bytes looked at together where nothing needs escaping; a vector register's worth.
const STRIDE: usize = 16;

/// A string in quotes, ASCII alone: `ensure_ascii` of `json.dumps`.
pub(crate) fn write_text(out: &mut Vec<u8>, mut text: &str) {
    out.push(b'"');
    loop {
        let plain = plain_prefix(text.as_bytes());
        out.extend_from_slice(&text.as_bytes()[..plain]);
        let mut rest = text[plain..].chars();
        let Some(special) = rest.next() else { break };
        write_escaped(out, special);
        text = rest.as_str();
    }
    out.push(b'"');
}

/// How many bytes from the start stand for themselves.
fn plain_prefix(text: &[u8]) -> usize {
    // Without branches inside a stride, so that it is compared at once.
    let all_plain = |stride: &[u8; STRIDE]| stride.iter().fold(true, |all, &byte| all & is_plain(byte));
    let (strides, _) = text.as_chunks::<STRIDE>();
    let start = STRIDE * strides.iter().take_while(|stride| all_plain(stride)).count();
    let rest = &text[start..];
    start
        + rest
            .iter()
            .position(|&byte| !is_plain(byte))
            .unwrap_or(rest.len())
}

fn is_plain(byte: u8) -> bool {
    (b' '..=b'~').contains(&byte) & (byte != b'"') & (byte != b'\\')
}

fn write_escaped(out: &mut Vec<u8>, char: char) {
    let short = match char {
        '"' => b'"',
        '\\' => b'\\',
        '\n' => b'n',
        '\r' => b'r',
        '\t' => b't',
        '\u{8}' => b'b',
        '\u{c}' => b'f',
        _ => {
            for unit in char.encode_utf16(&mut [0; 2]) {
                let digit = |shift: u16| b"0123456789abcdef"[usize::from(*unit >> shift & 0xf)];
                out.extend_from_slice(&[b'\\', b'u', digit(12), digit(8), digit(4), digit(0)]);
            }
            return;
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

/// A float as `float.__repr__`: the fewest digits that read back as the same number.
pub(crate) fn write_float(out: &mut Vec<u8>, float: f64) {
    if float.is_nan() {
        return out.extend_from_slice(b"NaN");
    }
    if float.is_sign_negative() {
        out.push(b'-');
    }
    if float.is_infinite() {
        return out.extend_from_slice(b"Infinity");
    }
    let mut buffer = zmij::Buffer::new();
    let text = buffer.format_finite(float.abs());
    // The same digits as Python's, but for two matters of layout: 1e-5 and its like, and exponents of one digit.
    match (text.strip_prefix("0.0000"), text.split_once("e-")) {
        (Some(digits), _) => {
            let (first, rest) = digits.split_at(1);
            let point = if rest.is_empty() { "" } else { "." };
            extend(out, [first, point, rest, "e-05"]);
        }
        (_, Some((digits, exponent))) => {
            let zero = if exponent.len() == 1 { "0" } else { "" };
            extend(out, [digits, "e-", zero, exponent]);
        }
        _ => out.extend_from_slice(text.as_bytes()),
    }
}

fn extend(out: &mut Vec<u8>, parts: [&str; 4]) {
    for part in parts {
        out.extend_from_slice(part.as_bytes());
    }
}
