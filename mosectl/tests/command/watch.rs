//! `--watch`, into a pipe and on a terminal.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Instant;

use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::Value;

use crate::harness::{LIMIT, MANIFEST, User};

/// A process that is ended with its test.
struct Watching(Child);

impl Watching {
    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.0.id().try_into().unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn each_change_is_an_object() {
    let user = User::new();
    let _up = user.up(&[]);
    let mut watch = user.command(&["node", "list", "--watch", "--output", "json"]);
    let mut watch = Watching(watch.stdout(Stdio::piped()).spawn().unwrap());
    let out = BufReader::new(watch.0.stdout.take().unwrap());
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        out.lines()
            .map_while(Result::ok)
            .try_for_each(|line| sender.send(line))
    });
    let next = || -> Value { serde_json::from_str(&lines.recv_timeout(LIMIT).unwrap()).unwrap() };
    let first = next();
    assert_eq!(
        (&first[0]["name"], &first[0]["draining"]),
        (&"node-1".into(), &false.into())
    );
    assert_eq!(user.run(&["node", "drain", "node-1", "--no-wait"]).code, Some(0));
    assert_eq!(next()[0]["draining"], true, "time alone is no change");
    watch.signal(Signal::INT);
    assert_eq!(
        watch.0.wait().unwrap().code(),
        None,
        "ended by the signal, which a shell shows as 130"
    );
}

/// What a terminal is told, as it comes.
struct Shown {
    parts: Receiver<Vec<u8>>,
    text: String,
}

impl Shown {
    /// Reads on until the terminal was told `words`; gives back all that came up to the end of those.
    fn until(&mut self, words: &str) -> String {
        let start = Instant::now();
        loop {
            if let Some(at) = self.text.find(words) {
                return self.text.drain(..at + words.len()).collect();
            }
            let left = LIMIT.checked_sub(start.elapsed());
            let part = left.and_then(|left| self.parts.recv_timeout(left).ok());
            let part = part.unwrap_or_else(|| panic!("{words:?} is missing in {:?}", self.text));
            self.text += &String::from_utf8_lossy(&part);
        }
    }
}

fn size(lines: u16) -> Winsize {
    Winsize {
        ws_row: lines,
        ws_col: 200,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

#[test]
fn a_terminal_is_redrawn_and_given_back() {
    let user = User::new();
    let _up = user.up(&[]);
    std::fs::write(
        user.path("label.yaml"),
        MANIFEST.replace("m:C", "m:C\n    labels: {gpu: h100}"),
    )
    .unwrap();
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    tcsetwinsize(&terminal, size(50)).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap();
    let inner = open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
    let mut watch = user.command(&["status", "--watch"]);
    let mut watch = Watching(
        watch
            .stdout(Stdio::from(inner))
            .env("TERM", "xterm")
            .spawn()
            .unwrap(),
    );
    let (sender, parts) = mpsc::channel();
    let mut reading = File::from(terminal.try_clone().unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        // The end of the other side reads as an error.
        while let Ok(length @ 1..) = reading.read(&mut buffer) {
            if sender.send(buffer[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    let mut shown = Shown {
        parts,
        text: String::new(),
    };
    assert_eq!(
        shown.until("\x1b[?7l"),
        "\x1b[?1049h\x1b[?25l\x1b[?7l",
        "it takes the screen first"
    );
    let frame = shown.until("\x1b[J");
    assert!(
        frame.starts_with("\x1b[Hcluster local") && frame.contains("no pipelines"),
        "{frame:?}"
    );
    user.run(&["deploy", "label.yaml", "--timeout", "100ms"]);
    shown.until("demo ");
    tcsetwinsize(&terminal, size(4)).unwrap();
    watch.signal(Signal::WINCH);
    shown.until(" more lines\x1b[K\x1b[J");
    watch.signal(Signal::INT);
    shown.until("\x1b[?7h\x1b[?25h\x1b[?1049l");
    // The whole of it stays behind, as if it had been shown once.
    shown.until("MEMBER");
    assert_eq!(watch.0.wait().unwrap().code(), Some(130));
}
