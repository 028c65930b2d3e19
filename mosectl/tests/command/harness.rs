//! A user of the `mosectl` command, with a folder of their own.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// Far above what anything here takes, so that a hang is a failure with a name.
pub const LIMIT: Duration = Duration::from_secs(30);

/// Says that every worker is fine, and fails as one.
const FAKE_PYTHON: &str = r#"#!/bin/sh
case "$2" in
-S) exit 0 ;;
mosec.inspect) echo '{"workers": [{"module": "m", "class": "C", "mime": "text/plain"}]}' ;;
*) echo "no such model" >&2; exit 7 ;;
esac
"#;

pub const MANIFEST: &str =
    "pipeline: demo\nsource: service\nstages:\n  - name: only\n    worker: m:C\nroutes:\n  - path: /demo\n";

/// A user with an own runtime folder and temporary folder.
pub struct User {
    home: tempfile::TempDir,
}

impl User {
    pub fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        for folder in ["run", "tmp"] {
            fs::create_dir(home.path().join(folder)).unwrap();
        }
        let user = Self { home };
        fs::write(user.path("python"), FAKE_PYTHON).unwrap();
        fs::set_permissions(user.path("python"), fs::Permissions::from_mode(0o755)).unwrap();
        // Its folder travels to the node.
        fs::create_dir(user.path("service")).unwrap();
        fs::write(user.path("pipeline.yaml"), MANIFEST).unwrap();
        user
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.program(env!("CARGO_BIN_EXE_mosectl"));
        command.args(args);
        command
    }

    /// Any program, with the user's environment.
    pub fn program(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        command.current_dir(&self.home).stdin(Stdio::null());
        for name in ["MOSEC_CONTROL_PLANE", "MOSEC_IDENTITY", "MOSEC_LOG_LEVEL"] {
            command.env_remove(name);
        }
        command.env("MOSEC_PYTHON", self.path("python"));
        command
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .env("TMPDIR", self.path("tmp"));
        command
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        Ran::from(self.command(args).output().unwrap())
    }

    /// Starts `mosectl up` and waits until it is ready.
    pub fn up(&self, args: &[&str]) -> Up {
        let mut command = self.command(&["up", "--port", "0"]);
        let mut child = command
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            out.lines()
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line))
        });
        let ready = lines.recv_timeout(LIMIT).expect("it says that it is ready");
        let url = ready
            .strip_prefix("ready on http://")
            .and_then(|rest| rest.split(' ').next());
        Up {
            http: url.unwrap_or_else(|| panic!("{ready}")).to_owned(),
            child,
        }
    }
}

pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self {
            code: output.status.code(),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }
}

pub struct Up {
    http: String,
    child: Child,
}

impl Up {
    /// The status line of an answer from the gateway.
    pub fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.http).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.lines().next().unwrap_or_default().to_owned()
    }

    /// Ends it with a signal; exit code and what it had to say.
    pub fn stop(mut self, signal: Signal) -> (Option<i32>, String) {
        let pid = Pid::from_raw(self.child.id().try_into().unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
        let code = self.child.wait().unwrap().code();
        let mut text = String::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        (code, text)
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
