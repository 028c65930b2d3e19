//! The `mosectl` command against a whole cluster in one process, without Python: a shell script stands in for it.
#![expect(
    unreachable_pub,
    reason = "nothing of a test is reachable; `pub` marks what the files share"
)]
#![allow(clippy::unwrap_used)] // helpers of tests are not seen as tests

mod harness;
mod watch;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rustix::process::Signal;

use crate::harness::{MANIFEST, Ran, User};

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
    let cpus: f64 = report["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| node["cpus"].as_f64().unwrap())
        .sum();
    let here = std::thread::available_parallelism().unwrap().get();
    assert!((cpus - here as f64).abs() < 0.01, "{cpus} of {here}");
    for (needs, code, words) in [
        ("cpus: 0.1\n    memory: 1MiB", 0, "only"),
        ("cpus: 0.1\n    memory: 1000000GiB", 1, "memory free, not"),
        ("cpus: 100000", 1, "cpus free, not"),
    ] {
        let manifest = MANIFEST.replace("m:C", &format!("m:C\n    {needs}"));
        fs::write(user.path("needs.yaml"), manifest).unwrap();
        let planned = user.run(&["plan", "-f", "needs.yaml"]);
        let text = format!("{}{}", planned.out, planned.err);
        assert!(
            planned.code == Some(code) && text.contains(words),
            "{needs}: {text}"
        );
    }
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
    for (args, words) in [
        (&["describe", "demo"][..], "deploy demo (stages: 1, replicas: 1)"),
        (&["describe", "pipeline", "demo"], "m:C"),
        (&["describe", "node", "node-1"], "node node-1  up  heard"),
        (
            &["describe", "demo", "--output", "json"],
            "\"outcome\": \"failed\"",
        ),
    ] {
        let described = user.run(args);
        assert!(
            described.code == Some(0) && described.out.contains(words),
            "{args:?}: {} {}",
            described.out,
            described.err
        );
    }
    for args in [&["describe", "none"][..], &["describe", "node", "none"]] {
        let described = user.run(args);
        assert!(
            described.code == Some(1) && described.err.contains("there is no "),
            "{}",
            described.err
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
        (user.run(&["describe"]), 2, "<PIPELINE>"),
        (
            user.run(&["logs", "demo", "--tail", "few"]),
            2,
            "expected a number of lines or \"all\"",
        ),
        (user.run(&["man", "--dir", "man"]), 0, ""),
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
        (
            user.run(&["status", "--control-plane", "127.0.0.1", "--identity", "operator"]),
            2,
            "invalid value '127.0.0.1' for '--control-plane <HOST:PORT,..>': expected host:port, as 10.0.0.1:7400",
        ),
        (
            user.run(&["login", "--token", "x", "--control-plane", "a:1,b"]),
            2,
            "invalid value 'b' for '--control-plane",
        ),
        (
            user.run(&[
                "restore",
                "x.backup",
                "--data-dir",
                "data",
                "--cluster-id",
                "c",
                "--identity",
                "operator",
            ]),
            2,
            "--node-id <N>",
        ),
        (user.run(&["explain", "No-Replica"]), 0, ""),
        (user.run(&["explain", "no_replca"]), 2, "did you mean no_replica?"),
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
fn an_interpreter_that_cannot_be_used_is_told_at_the_start() {
    let user = User::new();
    for (python, why) in [
        ("/nonexistent", "No such file or directory"),
        ("no-such-python", "No such file or directory"),
        ("/bin/false", "it ends with exit status: 1"),
    ] {
        let ran = user.run(&["up", "--port", "0", "--python", python]);
        assert_eq!(ran.code, Some(1), "{}", ran.err);
        let what = format!("the Python interpreter \"{python}\" cannot be used");
        for words in [&what, why, "hint: --python names the interpreter"] {
            assert!(ran.err.contains(words), "{words}: {}", ran.err);
        }
        assert_eq!(entries(&user.path("tmp")), [""; 0]);
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

#[test]
fn a_backup_goes_through_pipes() {
    let user = User::new();
    let up = user.up(&[]);
    let taken = user.command(&["backup", "-"]).output().unwrap();
    let told = String::from_utf8(taken.stderr).unwrap();
    assert!(taken.status.success() && told.contains("all checked"), "{told}");
    assert_eq!(up.stop(Signal::TERM).0, Some(0));
    fs::write(user.path("whole"), &taken.stdout).unwrap();
    fs::write(user.path("half"), &taken.stdout[..taken.stdout.len() / 2]).unwrap();
    let checked = user.run(&["backup", "--check", "whole"]);
    assert_eq!((checked.code, &checked.out), (Some(0), &told), "{}", checked.err);

    let piped = |args: &[&str], file: &str| {
        let input = fs::File::open(user.path(file)).unwrap();
        Ran::from(user.command(args).stdin(input).output().unwrap())
    };
    let checked = piped(&["backup", "--check", "-"], "whole");
    assert_eq!((checked.code, &checked.out), (Some(0), &told), "{}", checked.err);
    let checked = piped(&["backup", "--check", "-"], "half");
    assert!(
        checked.code == Some(1)
            && checked.err.contains("standard-input-")
            && checked.err.contains("cut short"),
        "{}",
        checked.err
    );
    let cluster = told.split_whitespace().nth(1).unwrap();
    let restore = [
        "restore",
        "-",
        "--data-dir",
        "data",
        "--cluster-id",
        cluster,
        "--node-id",
        "1",
        "--insecure",
    ];
    let restored = piped(&restore, "whole");
    assert_eq!(restored.code, Some(0), "{}", restored.err);
    assert!(user.path("data").is_dir() && !user.path("-").exists());
    assert_eq!(entries(&user.path("tmp")), [""; 0]);
}

#[test]
fn containers_get_new_tokens_where_the_last_ones_will_not_do() {
    let user = User::new();
    let up = user.up(&[]);
    let programs = Path::new(env!("CARGO_BIN_EXE_mosectl")).parent().unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    for role in ["agent", "gateway"] {
        fs::create_dir_all(user.path("tokens").join(role)).unwrap();
    }
    let started = || {
        let mut command = user.program("sh");
        command.arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../configs/compose/tokens.sh"
        ));
        command.env("PATH", &path).env("TOKENS", user.path("tokens"));
        let ran = Ran::from(command.output().unwrap());
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        ["agent", "gateway"]
            .map(|role| fs::read_to_string(user.path("tokens").join(role).join("token")).unwrap())
    };
    let first = started();
    assert!(first.iter().all(|token| token.starts_with("mosec1_")));
    assert_eq!(started(), first, "both are still good");
    let revoked = user.run(&["token", "revoke", first[0].trim()]);
    assert_eq!(revoked.code, Some(0), "{}", revoked.err);
    let later = started();
    assert!(later[0] != first[0] && later[1] == first[1]);
    assert_eq!(started(), later);
    fs::remove_file(user.path("tokens/gateway/token")).unwrap();
    let last = started();
    assert!(last[0] == later[0] && last[1] != later[1]);
    let listed = user.run(&["token", "list", "--output", "json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed.out).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 4);
    assert_eq!(up.stop(Signal::TERM).0, Some(0));
}
