//! A whole screen that is drawn again and again, and leaves what was there before as it was.

use std::io::{IsTerminal as _, Write as _};

use rustix::process::{Signal as Sent, getpid, kill_process};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{print_while_read, size};

/// The alternate screen, which has no scrollback; no cursor; lines that are too long are cut by the terminal.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";
const HOME: &str = "\x1b[H";
/// Clears what an earlier frame left to the right, and below.
const END_OF_LINE: &str = "\x1b[K";
const END_OF_FRAME: &str = "\x1b[J";

/// The user's terminal, taken over until it is dropped.
pub(crate) struct Screen {
    frame: String,
    interrupted: [Signal; 3],
    suspended: Signal,
    resized: Signal,
}

/// What the user, or who runs the terminal, has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// Time to leave; the exit code that says so.
    Interrupted(u8),
    /// The screen has been drawn anew.
    Redrawn,
}

impl Screen {
    /// Takes the terminal over; `None` where standard output is none.
    pub(crate) fn take() -> std::io::Result<Option<Self>> {
        if !std::io::stdout().is_terminal() {
            return Ok(None);
        }
        let screen = Self {
            frame: String::new(),
            interrupted: [
                signal(SignalKind::interrupt())?,
                signal(SignalKind::terminate())?,
                signal(SignalKind::hangup())?,
            ],
            suspended: signal(SignalKind::from_raw(Sent::TSTP.as_raw()))?,
            resized: signal(SignalKind::window_change())?,
        };
        write(ENTER);
        Ok(Some(screen))
    }

    /// Draws a frame in place of the one before.
    pub(crate) fn show(&mut self, frame: &str) {
        frame.clone_into(&mut self.frame);
        self.draw();
    }

    fn draw(&self) {
        write(&fit(&self.frame, size().1));
    }

    /// Waits for something that the caller has to know. Cancel safe.
    pub(crate) async fn event(&mut self) -> Event {
        let [interrupt, terminate, hang_up] = &mut self.interrupted;
        let ended = |signal: Sent| Event::Interrupted(128 + u8::try_from(signal.as_raw()).unwrap_or(0));
        tokio::select! {
            _ = interrupt.recv() => ended(Sent::INT),
            _ = terminate.recv() => ended(Sent::TERM),
            _ = hang_up.recv() => ended(Sent::HUP),
            _ = self.resized.recv() => {
                self.draw();
                Event::Redrawn
            }
            _ = self.suspended.recv() => {
                write(LEAVE);
                // Stops here, and goes on here when the shell says so.
                let _ = kill_process(getpid(), Sent::STOP);
                write(ENTER);
                self.draw();
                Event::Redrawn
            }
        }
    }

    /// Gives the terminal back, with the last frame on it.
    pub(crate) fn leave(self) -> std::io::Result<()> {
        let frame = self.frame.clone();
        drop(self);
        print_while_read(&frame).map(drop)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        write(LEAVE);
    }
}

/// What draws a frame on a screen of so many lines.
fn fit(frame: &str, height: usize) -> String {
    let lines: Vec<_> = frame.lines().collect();
    let mut text = String::from(HOME);
    let hidden = if lines.len() > height {
        lines.len() - height.saturating_sub(1)
    } else {
        0
    };
    let shown = lines[..lines.len() - hidden].iter().map(|&line| line.to_owned());
    let note = (hidden > 0).then(|| format!("... {hidden} more lines"));
    let drawn: Vec<_> = shown
        .chain(note)
        .take(height)
        .map(|line| line + END_OF_LINE)
        .collect();
    text += &drawn.join("\r\n");
    text + END_OF_FRAME
}

/// A terminal that is gone takes this process along.
fn write(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_fits_the_screen_and_leaves_nothing_of_the_one_before() {
        let cases = [
            ("", 3, "\x1b[H\x1b[J"),
            ("a\n", 3, "\x1b[Ha\x1b[K\x1b[J"),
            ("a\n\nb\n", 3, "\x1b[Ha\x1b[K\r\n\x1b[K\r\nb\x1b[K\x1b[J"),
            (
                "a\nb\nc\nd\n",
                3,
                "\x1b[Ha\x1b[K\r\nb\x1b[K\r\n... 2 more lines\x1b[K\x1b[J",
            ),
            ("a\nb\n", 1, "\x1b[H... 2 more lines\x1b[K\x1b[J"),
            ("a\nb\n", 0, "\x1b[H\x1b[J"),
        ];
        for (frame, height, expected) in cases {
            assert_eq!(fit(frame, height), expected, "{frame:?} on {height} lines");
        }
    }
}
