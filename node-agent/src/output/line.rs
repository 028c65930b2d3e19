//! Makes lines of what a worker writes. Pure.

use mosec_wire::control::proto::OutputStream;

/// One line of a worker's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) at_unix_ms: u64,
    pub(crate) stream: OutputStream,
    pub(crate) text: Box<str>,
    /// Bytes that were cut off at the end.
    pub(crate) cut_bytes: u32,
}

/// Splits bytes into lines, as a terminal would show them: what a carriage return takes back, as progress bars do, is not
/// kept.
#[derive(Debug)]
pub(crate) struct Splitter {
    max_bytes: usize,
    begun: Vec<u8>,
    cut_bytes: u32,
    /// A carriage return came last: the line begins anew unless it ends.
    returned: bool,
}

impl Splitter {
    /// `max_bytes`: longest line; what is beyond it is counted and not kept.
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self {
            max_bytes,
            begun: Vec::new(),
            cut_bytes: 0,
            returned: false,
        }
    }

    /// Takes what was read; each whole line goes to `whole` with the number of bytes that were cut off.
    pub(crate) fn take(&mut self, bytes: &[u8], mut whole: impl FnMut(Box<str>, u32)) {
        for part in bytes.split_inclusive(|byte| matches!(byte, b'\n' | b'\r')) {
            let (text, end) = match part {
                [text @ .., end @ (b'\n' | b'\r')] => (text, Some(*end)),
                text => (text, None),
            };
            if self.returned && !(text.is_empty() && end.is_some()) {
                self.begun.clear();
                self.cut_bytes = 0;
                self.returned = false;
            }
            let room = self.max_bytes.saturating_sub(self.begun.len()).min(text.len());
            self.begun.extend_from_slice(&text[..room]);
            let cut = u32::try_from(text.len() - room).unwrap_or(u32::MAX);
            self.cut_bytes = self.cut_bytes.saturating_add(cut);
            match end {
                Some(b'\n') => self.end(&mut whole),
                Some(_) => self.returned = true,
                None => {}
            }
        }
    }

    /// The line that was begun and will not be ended, if there is one.
    pub(crate) fn finish(&mut self, mut whole: impl FnMut(Box<str>, u32)) {
        if !self.begun.is_empty() {
            self.end(&mut whole);
        }
    }

    fn end(&mut self, whole: &mut impl FnMut(Box<str>, u32)) {
        whole(String::from_utf8_lossy(&self.begun).into(), self.cut_bytes);
        self.begun.clear();
        self.cut_bytes = 0;
        self.returned = false;
    }
}

/// Cuts bytes at the ends of lines, as they are, so that lines of several workers can be written to one place.
#[derive(Debug)]
pub(crate) struct WholeLines {
    max_bytes: usize,
    begun: Vec<u8>,
    /// The begun line was longer than may be held back, and a part of it has been given out.
    is_broken: bool,
}

impl WholeLines {
    /// `max_bytes`: most that is held back of a line that has not ended. Longer ones are given out in parts.
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self {
            max_bytes,
            begun: Vec::new(),
            is_broken: false,
        }
    }

    /// Takes what was read. Gives out all lines that have ended now, or nothing.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Vec<u8> {
        let end = bytes
            .iter()
            .rposition(|&byte| byte == b'\n')
            .map_or(0, |at| at + 1);
        let (ended, begun) = bytes.split_at(end);
        let mut whole = Vec::new();
        if !ended.is_empty() {
            whole = std::mem::take(&mut self.begun);
            whole.extend_from_slice(ended);
            self.is_broken = false;
        }
        self.begun.extend_from_slice(begun);
        if self.begun.len() > self.max_bytes {
            whole.append(&mut self.begun);
            self.is_broken = true;
        }
        whole
    }

    /// What was begun and will not be ended, with an end, so that nothing of others follows on its line.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        if self.is_broken || !self.begun.is_empty() {
            self.begun.push(b'\n');
        }
        self.begun
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(max_bytes: usize, parts: &[&[u8]]) -> Vec<(String, u32)> {
        let mut splitter = Splitter::new(max_bytes);
        let mut lines = Vec::new();
        let mut keep = |text: Box<str>, cut| lines.push((text.into(), cut));
        for part in parts {
            splitter.take(part, &mut keep);
        }
        splitter.finish(&mut keep);
        lines
    }

    #[test]
    fn lines_are_what_a_terminal_shows() {
        type Case<'a> = (&'a [&'a [u8]], &'a [(&'a str, u32)]);
        let cases: [Case<'_>; 9] = [
            (&[b""], &[]),
            (&[b"a\n\nb"], &[("a", 0), ("", 0), ("b", 0)]),
            (&[b"he", b"llo\nwor", b"ld\n"], &[("hello", 0), ("world", 0)]),
            (&[b"dos\r\nunix\n"], &[("dos", 0), ("unix", 0)]),
            (&[b"dos\r", b"\n"], &[("dos", 0)]),
            (&[b"\r 10%\r 20%\r100%\n"], &[("100%", 0)]),
            (&[b"123456789012345\n1\n"], &[("12345678", 7), ("1", 0)]),
            (&[b"123456789012345\r12\n"], &[("12", 0)]),
            (&[b"\xff\xc3", b"\xa4\n"], &[("\u{fffd}ä", 0)]),
        ];
        for (parts, expected) in cases {
            let expected: Vec<_> = expected
                .iter()
                .map(|&(text, cut)| (text.to_owned(), cut))
                .collect();
            assert_eq!(split(8, parts), expected, "{parts:?}");
        }
    }

    #[test]
    fn lines_are_given_out_whole() {
        let mut lines = WholeLines::new(4);
        let parts: [(&[u8], &[u8]); 7] = [
            (b"ab", b""),
            (b"c\nde", b"abc\n"),
            (b"\xff\r", b""),
            (b"\n\n", b"de\xff\r\n\n"),
            (b"", b""),
            (b"x\n12345", b"x\n12345"),
            (b"6", b""),
        ];
        for (part, expected) in parts {
            assert_eq!(lines.take(part), expected, "{part:?}");
        }
        assert_eq!(lines.finish(), b"6\n");
        let mut long = WholeLines::new(1);
        assert_eq!(long.take(b"12"), b"12");
        assert_eq!(long.finish(), b"\n", "it has not ended yet");
        assert_eq!(WholeLines::new(1).finish(), b"");
    }

    proptest! {
        #[test]
        fn what_is_given_out_is_what_was_taken_and_no_more_is_held_back(
            parts in prop::collection::vec("[ab\n]{0,12}", 0..8),
            max in 0usize..8,
        ) {
            let mut lines = WholeLines::new(max);
            let (mut taken, mut given) = (Vec::new(), Vec::new());
            for part in &parts {
                taken.extend_from_slice(part.as_bytes());
                let whole = lines.take(part.as_bytes());
                given.extend_from_slice(&whole);
                prop_assert!(taken.len() - given.len() <= max);
            }
            given.extend(lines.finish());
            if !taken.is_empty() && !taken.ends_with(b"\n") {
                taken.push(b'\n');
            }
            prop_assert_eq!(given, taken);
        }

        #[test]
        fn it_does_not_matter_where_reads_end(text in "[ab\r\n]{0,60}", at in 0usize..60) {
            let at = at.min(text.len());
            let (front, back) = text.as_bytes().split_at(at);
            prop_assert_eq!(split(5, &[front, back]), split(5, &[text.as_bytes()]));
        }

        #[test]
        fn no_line_is_longer_than_the_bound(bytes: Vec<u8>, max in 1usize..20) {
            for (text, _) in split(max, &[&bytes]) {
                // A replaced byte takes three.
                prop_assert!(text.len() <= 3 * max);
            }
        }
    }
}
