//! Standard output and error as the user has them: a terminal or not, and what may be written there.

use std::io::{IsTerminal as _, Write as _};
use std::os::fd::AsFd;
use std::sync::OnceLock;

use clap::ColorChoice;

mod screen;

pub(crate) use self::screen::{Event, Screen};

/// Columns of a terminal that does not tell.
const DEFAULT_WIDTH: usize = 80;
/// Lines of such a terminal.
const DEFAULT_HEIGHT: usize = 24;

/// What `--color` says, once it has been read.
static COLOURS: OnceLock<ColorChoice> = OnceLock::new();

/// Follows `--color` from now on. A second call changes nothing.
pub(crate) fn set_colours(choice: ColorChoice) {
    let _ = COLOURS.set(choice);
}

/// Whether standard error takes colours.
pub(crate) fn stderr_has_colours() -> bool {
    has_colours(std::io::stderr().is_terminal())
}

/// Whether standard output takes colours.
pub(crate) fn stdout_has_colours() -> bool {
    has_colours(std::io::stdout().is_terminal())
}

/// Colours are for terminals that have some, unless <https://no-color.org> is followed, or `--color` says otherwise.
fn has_colours(is_terminal: bool) -> bool {
    match COLOURS.get() {
        Some(ColorChoice::Always) => true,
        Some(ColorChoice::Never) => false,
        Some(ColorChoice::Auto) | None => {
            let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
            let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            is_terminal && !dumb && !refused
        }
    }
}

/// Writes to standard error. Nobody can be told when that fails.
pub(crate) fn print_error(text: &str) {
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// Writes to standard output; a reader that has left, as `head` does, is no error.
pub(crate) fn print(text: &str) -> std::io::Result<()> {
    print_while_read(text).map(drop)
}

/// As [`print()`]; false where the reader has left.
pub(crate) fn print_while_read(text: &str) -> std::io::Result<bool> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        result => result.map(|()| true),
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

/// One line of a program's output for a terminal: without what could move its cursor or change its state. Colours stay
/// where they are wanted, and end with the line.
pub(crate) fn printable_output(text: &str, colours: bool) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text.chars();
    let mut coloured = false;
    while let Some(c) = rest.next() {
        if c != '\x1b' {
            out.push(if c.is_control() && c != '\t' { ' ' } else { c });
            continue;
        }
        match rest.next() {
            // A control sequence: parameters, then a final character, which is 'm' for colours.
            Some('[') => {
                let mut sequence = String::new();
                let end = rest.find(|&c| {
                    sequence.push(c);
                    matches!(c, '\x40'..='\x7e')
                });
                if colours
                    && end == Some('m')
                    && sequence.chars().all(|c| matches!(c, '0'..='9' | ';' | ':' | 'm'))
                {
                    out.push_str("\x1b[");
                    out.push_str(&sequence);
                    coloured = true;
                }
            }
            // A title or a link, up to its end.
            Some(']') => while !matches!(rest.next(), None | Some('\x07' | '\x1b' | '\u{9c}')) {},
            _ => {}
        }
    }
    if coloured {
        out.push_str("\x1b[0m");
    }
    out
}

/// Most lines of details: what is in the way shows in the first ones.
const MAX_DETAILS: usize = 8;

/// Progress on standard error: lines that are rewritten on a terminal, else a line for each change.
#[derive(Debug)]
pub(crate) struct Progress {
    live: bool,
    shown: Vec<String>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self {
            live: std::io::stderr().is_terminal(),
            shown: Vec::new(),
        }
    }

    /// Shows what is going on now.
    pub(crate) fn show(&mut self, text: &str) {
        self.show_with(text, &[]);
    }

    /// As [`Progress::show`], and on a terminal with details below, a line each.
    pub(crate) fn show_with(&mut self, text: &str, details: &[String]) {
        let (width, height) = dimensions(std::io::stderr());
        let lines = match self.live {
            true => block(text, details, width, height),
            false => vec![text.to_owned()],
        };
        if self.shown == lines {
            return;
        }
        let text = match self.live {
            true => format!("{}{}", rewind(self.shown.len()), lines.join("\n")),
            false => format!("{text}\n"),
        };
        print_error(&text);
        self.shown = lines;
    }

    /// Writes a line that stays.
    pub(crate) fn line(&mut self, text: &str) {
        self.end();
        print_error(&format!("{text}\n"));
    }

    /// Takes the live lines away.
    pub(crate) fn end(&mut self) {
        if self.live && !self.shown.is_empty() {
            print_error(&rewind(self.shown.len()));
        }
        self.shown.clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

/// To the beginning of the first of `lines` lines, and everything from there away.
fn rewind(lines: usize) -> String {
    match lines {
        0 | 1 => "\r\x1b[J".to_owned(),
        lines => format!("\r\x1b[{}A\x1b[J", lines - 1),
    }
}

/// The lines that fit: none as long as the terminal is wide, or it would take two.
fn block(text: &str, details: &[String], width: usize, height: usize) -> Vec<String> {
    let cut = |line: &str| -> String { line.chars().take(width.saturating_sub(1)).collect() };
    let room = MAX_DETAILS.min(height.saturating_sub(3));
    let mut lines = vec![cut(text)];
    let printed = if details.len() > room {
        room.saturating_sub(1)
    } else {
        details.len()
    };
    // An error may have lines of its own.
    let flat = |detail: &String| cut(&format!("  {}", printable(detail).replace(['\n', '\t'], " ")));
    lines.extend(details[..printed].iter().map(flat));
    if printed < details.len() && room > 0 {
        lines.push(cut(&format!("  and {} more", details.len() - printed)));
    }
    lines
}

/// Columns and lines of standard output.
fn size() -> (usize, usize) {
    dimensions(std::io::stdout())
}

fn dimensions(of: impl AsFd) -> (usize, usize) {
    match rustix::termios::tcgetwinsize(of) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
        _ => (DEFAULT_WIDTH, DEFAULT_HEIGHT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_take_the_lines_that_there_are() {
        let details: Vec<_> = (1..=9).map(|at| format!("replica {at}\nstarts")).collect();
        let lines = block("first 0/9", &details, 80, 24);
        assert_eq!(lines.len(), 9);
        assert_eq!(
            (lines[1].as_str(), lines[8].as_str()),
            ("  replica 1 starts", "  and 2 more")
        );
        let lines = block("first 0/9", &details[..2], 12, 24);
        assert_eq!(lines, ["first 0/9", "  replica 1", "  replica 2"]);
        assert_eq!(
            block("first 0/9", &details, 80, 5),
            ["first 0/9", "  replica 1 starts", "  and 8 more"]
        );
        assert_eq!(block("first 0/9", &details, 80, 2), ["first 0/9"]);
        assert_eq!(rewind(1), "\r\x1b[J");
        assert_eq!(rewind(3), "\r\x1b[2A\x1b[J");
    }

    #[test]
    fn escape_sequences_are_disarmed() {
        assert_eq!(printable("a\x1b[31mb\r\nc\td\u{9b}"), "a [31mb \nc\td ");
    }

    #[test]
    fn colours_of_programs_stay_where_they_are_wanted_and_nothing_else_does() {
        let red = "\x1b[1;31mred\x1b[0m";
        assert_eq!(printable_output(red, false), "red");
        assert_eq!(printable_output(red, true), format!("{red}\x1b[0m"));
        for (text, shown) in [
            ("a\x1b[2J\x1b[Hb\tc", "ab\tc"),
            ("\x1b]0;title\x07x", "x"),
            ("\x1b]8;;http://a\x1b\\x", "\\x"),
            ("end\x1b[3", "end"),
            ("end\x1b", "end"),
            ("bell\x07 \u{9b}31m", "bell   31m"),
            ("\x1b[?25hx", "x"),
            ("\x1b[>4;1mx", "x"),
        ] {
            assert_eq!(printable_output(text, true), shown, "{text:?}");
        }
    }
}
