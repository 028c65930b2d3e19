//! The `mosectl` command against a whole cluster in one process, without Python: a shell script stands in for it.
#![allow(clippy::unwrap_used)] // helpers of tests are not seen as tests

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// Far above what anything here takes, so that a hang is a failure with a name.
const LIMIT: Duration = Duration::from_secs(30);

/// Says that every worker is fine, and fails as one.
const FAKE_PYTHON: &str = r#"#!/bin/sh
case "$2" in
mosec.inspect) echo '{"workers": [{"module": "m", "class": "C", "mime": "text/plain"}]}' ;;
*) echo "no such model" >&2; exit 7 ;;
esac
"#;

const MANIFEST: &str =
    "pipeline: demo\nsource: service\nstages:\n  - name: only\n    worker: m:C\nroutes:\n  - path: /demo\n";

/// A user with an own runtime folder and temporary folder.
struct User {
    home: tempfile::TempDir,
}

impl User {
    fn new() -> Self {
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

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mosectl"));
        command.args(args).current_dir(&self.home).stdin(Stdio::null());
        for name in ["MOSEC_CONTROL_PLANE", "MOSEC_IDENTITY", "MOSEC_LOG_LEVEL"] {
            command.env_remove(name);
        }
        command.env("MOSEC_PYTHON", self.path("python"));
        command
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .env("TMPDIR", self.path("tmp"));
        command
    }

    fn run(&self, args: &[&str]) -> Ran {
        Ran::from(self.command(args).output().unwrap())
    }

    /// Starts `mosectl up` and waits until it is ready.
    fn up(&self, args: &[&str]) -> Up {
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

struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
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

struct Up {
    http: String,
    child: Child,
}

impl Up {
    /// The status line of an answer from the gateway.
    fn get(&self, path: &str) -> String {
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
    fn stop(mut self, signal: Signal) -> (Option<i32>, String) {
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

fn entries(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    names.collect()
}

#[test]
fn a_cluster_comes_up_and_leaves_nothing_behind() {
    let user = User::new();
    let up = user.up(&["--agents", "2"]);
    assert_eq!(up.get("/"), "HTTP/1.1 200 OK");
    let status = user.run(&["status", "--output", "json"]);
    assert_eq!(status.code, Some(0), "{}", status.err);
    let report: serde_json::Value = serde_json::from_str(&status.out).unwrap();
    let health: Vec<_> = report["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| &node["health"])
        .collect();
    assert_eq!(health, ["up", "up"]);
    assert_eq!(report["leader"], 1);
    let (code, text) = up.stop(Signal::TERM);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("stopping"), "{text}");
    assert_eq!(entries(&user.path("run")), [""; 0]);
    assert_eq!(entries(&user.path("tmp")), [""; 0]);
}

#[test]
fn a_failed_deployment_tells_why_and_survives_a_restart() {
    let user = User::new();
    let up = user.up(&["--data", "data"]);
    let deployed = user.run(&["deploy", "pipeline.yaml"]);
    assert_eq!(deployed.code, Some(1), "{}", deployed.err);
    let reason = "stage only replica 1 on node node-1 failed to start 3 times";
    assert!(deployed.err.contains(reason), "{}", deployed.err);
    assert!(
        deployed.err.contains("only 0/1\n") && !deployed.err.contains('\x1b'),
        "{}",
        deployed.err
    );
    let logs = user.run(&["logs", "demo", "--tail", "all"]);
    assert_eq!((logs.code, logs.err.as_str()), (Some(0), ""), "{}", logs.out);
    for line in ["| no such model\n", "the process exited with code 7\n"] {
        let said = logs.out.matches(line).count();
        assert!(
            said >= 3 && logs.out.starts_with("only/1@node-1 r"),
            "{line}{}",
            logs.out
        );
    }
    let second = user.run(&["up", "--port", "0", "--data", "data"]);
    assert!(
        second.code == Some(1) && second.err.contains("is in use by another"),
        "{}",
        second.err
    );
    assert_eq!(up.stop(Signal::INT).0, Some(0));

    let ca = fs::read(user.path("data/ca/ca.pem")).unwrap();
    let up = user.up(&["--data", "data"]);
    assert_eq!(fs::read(user.path("data/ca/ca.pem")).unwrap(), ca);
    let status = user.run(&["status"]);
    assert!(status.out.contains(reason), "{}", status.out);
    let deleted = user.run(&["delete", "demo"]);
    assert_eq!(
        (deleted.code, deleted.out.as_str()),
        (Some(0), "deleted demo\n"),
        "{}",
        deleted.err
    );
    let again = user.run(&["delete", "demo"]);
    assert!(
        again.code == Some(1) && again.err.contains("there is no pipeline demo"),
        "{}",
        again.err
    );
    assert_eq!(up.stop(Signal::TERM).0, Some(0));
}

#[test]
fn a_deadline_that_passes_tells_what_was_not_ready() {
    let user = User::new();
    let _up = user.up(&[]);
    fs::write(
        user.path("label.yaml"),
        MANIFEST.replace("m:C", "m:C\n    labels: {gpu: h100}"),
    )
    .unwrap();
    let deployed = user.run(&["deploy", "label.yaml", "--timeout", "100ms"]);
    assert_eq!(deployed.code, Some(1), "{}", deployed.err);
    assert!(
        deployed.err.contains("node-1 has no label gpu=h100"),
        "{}",
        deployed.err
    );
}

#[test]
fn each_way_to_fail_has_its_exit_code() {
    let user = User::new();
    fs::write(user.path("typo.yaml"), "pipelin: x\n").unwrap();
    let offline = ["--control-plane", "127.0.0.1:9", "--identity", "operator"];
    let made = user.run(&["ca", "init", "--dir", "ca"]);
    assert_eq!(made.code, Some(0), "{}", made.err);
    assert_eq!(user.run(&["ca", "init", "--dir", "ca"]).code, Some(1));
    let issue = [
        "ca", "issue", "--dir", "ca", "--role", "operator", "--name", "me", "--out", "operator",
    ];
    let issued = user.run(&issue);
    assert_eq!(issued.code, Some(0), "{}", issued.err);
    assert_eq!(
        fs::metadata(user.path("operator/key.pem"))
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o600
    );

    let offline = |args: &[&'static str]| user.run(&[args, &offline].concat());
    let cases = [
        (user.run(&["--version"]), 0, ""),
        (user.run(&["completions", "bash"]), 0, ""),
        (user.run(&["frobnicate"]), 2, "frobnicate"),
        (user.run(&["status"]), 3, "no `mosectl up` is running"),
        (user.run(&["status", "--control-plane", "a:1"]), 2, "--identity"),
        (
            user.run(&[
                "ca", "issue", "--dir", "none", "--role", "agent", "--name", "a", "--out", "x",
            ]),
            1,
            "ca init",
        ),
        (
            offline(&["deploy", "typo.yaml"]),
            1,
            "typo.yaml:1:1: pipelin: unknown key, did you mean \"pipeline\"?",
        ),
        (offline(&["deploy", "notes.txt"]), 2, "notes.txt"),
        (offline(&["deploy", "none.yaml"]), 1, "cannot read none.yaml"),
        (offline(&["status"]), 3, "the control plane is unavailable"),
    ];
    for (ran, code, words) in cases {
        assert!(
            ran.code == Some(code) && ran.err.contains(words),
            "{:?} {}",
            ran.code,
            ran.err
        );
    }
}

#[test]
fn a_port_that_is_taken_is_told_with_a_way_out() {
    let user = User::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let ran = user.run(&["up", "--port", &port]);
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    assert!(
        ran.err.contains(&format!("cannot listen on 127.0.0.1:{port}")),
        "{}",
        ran.err
    );
    assert!(ran.err.contains("hint: --port takes another one"), "{}", ran.err);
    assert_eq!(entries(&user.path("tmp")), [""; 0]);
}
