//! Standard output and error as the user has them: a terminal or not, and what may be written there.

use std::io::{IsTerminal as _, Write as _};

/// Columns of a terminal that does not tell.
const DEFAULT_WIDTH: usize = 80;

/// Whether colours are wanted: on a terminal that has some, unless <https://no-color.org> is followed.
pub(crate) fn stderr_has_colours() -> bool {
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    std::io::stderr().is_terminal() && !dumb && !refused
}

/// Writes to standard error. Nobody can be told when that fails.
pub(crate) fn print_error(text: &str) {
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// Writes to standard output; a reader that has left, as `head` does, is no error.
pub(crate) fn print(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Text from elsewhere without the control characters that could move a terminal's cursor or change its state.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() && c != '\n' && c != '\t' {
                ' '
            } else {
                c
            }
        })
        .collect()
}

/// Progress on standard error: one line that is rewritten on a terminal, else a line for each change.
#[derive(Debug)]
pub(crate) struct Progress {
    live: bool,
    shown: String,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self {
            live: std::io::stderr().is_terminal(),
            shown: String::new(),
        }
    }

    /// Shows what is going on now.
    pub(crate) fn show(&mut self, text: &str) {
        if self.shown == text {
            return;
        }
        if self.live {
            let line: String = text.chars().take(width().saturating_sub(1)).collect();
            print_error(&format!("\r\x1b[K{line}"));
        } else {
            print_error(&format!("{text}\n"));
        }
        text.clone_into(&mut self.shown);
    }

    /// Writes a line that stays.
    pub(crate) fn line(&mut self, text: &str) {
        self.end();
        print_error(&format!("{text}\n"));
    }

    /// Takes the live line away.
    pub(crate) fn end(&mut self) {
        if self.live && !self.shown.is_empty() {
            print_error("\r\x1b[K");
        }
        self.shown.clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

fn width() -> usize {
    match rustix::termios::tcgetwinsize(std::io::stderr()) {
        Ok(size) if size.ws_col > 0 => size.ws_col.into(),
        _ => DEFAULT_WIDTH,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_are_disarmed() {
        assert_eq!(printable("a\x1b[31mb\r\nc\td\u{9b}"), "a [31mb \nc\td ");
    }
}
