use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use mosec_types::topology::Phase;
use tempfile::TempDir;

use super::*;

/// A service's folder with a file `src/text`, packed.
fn packed(text: &str) -> mosec_bundle::Packed {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("src")).unwrap();
    fs::write(root.path().join("src/text"), text).unwrap();
    mosec_bundle::pack(root.path(), mosec_bundle::DEFAULT_MAX_BYTES).unwrap()
}

/// Gives what it has, and counts how often it is asked.
fn source_of(bytes: Vec<u8>) -> (Fetch, Arc<AtomicU32>) {
    let asked = Arc::new(AtomicU32::new(0));
    let count = asked.clone();
    let fetch = move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        let bytes = Bytes::from(bytes.clone());
        async move { Ok(bytes) }.boxed()
    };
    (Arc::new(fetch), asked)
}

fn no_source() -> Fetch {
    Arc::new(|_| async { Err("nobody is there".to_owned()) }.boxed())
}

fn bundled(id: BundleId) -> PythonSource {
    PythonSource {
        dir: "src".into(),
        bundle: Some(id),
        ..Default::default()
    }
}

#[tokio::test]
async fn code_that_lies_here_is_taken_as_it_is() {
    let source = PythonSource {
        dir: "/srv".into(),
        ..Default::default()
    };
    let prepared = prepare(None, &source, "python3").await.unwrap();
    let expected = PythonSource {
        python: Some("python3".into()),
        ..source.clone()
    };
    assert_eq!((prepared.source, prepared.bin), (expected, None));
    let elsewhere = bundled(BundleId::from_digest([1; 32]));
    let refused = prepare(None, &elsewhere, "python3").await;
    assert!(matches!(refused, Err(CodeError::NoSource)));
}

#[test]
fn what_a_start_waits_for_is_said() {
    let mut source = PythonSource::default();
    assert_eq!(pending(&source), None);
    source.requirements.push("numpy".into());
    assert_eq!(pending(&source), Some("its requirements are being installed"));
    source.bundle = Some(BundleId::from_digest([1; 32]));
    assert_eq!(
        pending(&source),
        Some("its code is being fetched and its requirements installed")
    );
    source.requirements.clear();
    assert_eq!(pending(&source), Some("its code is being fetched"));
}

#[tokio::test]
async fn a_bundle_is_fetched_once_and_found_without_its_source() {
    let (dir, packed) = (tempfile::tempdir().unwrap(), packed("hello"));
    let (fetch, asked) = source_of(packed.bytes);
    let code = Code::open(dir.path(), fetch).unwrap();
    let source = bundled(packed.id);
    let all = (0..4).map(|_| prepare(Some(&code), &source, "python3"));
    for prepared in futures_util::future::join_all(all).await {
        let prepared = prepared.unwrap().source;
        assert_eq!(
            fs::read_to_string(Path::new(&prepared.dir).join("text")).unwrap(),
            "hello"
        );
        assert_eq!(prepared.bundle, None);
    }
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    let later = Code::open(dir.path(), no_source()).unwrap();
    prepare(Some(&later), &source, "python3").await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_had_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let source = bundled(packed("expected").id);
    let tried = async |fetch| {
        let code = Code::open(dir.path(), fetch).unwrap();
        prepare(Some(&code), &source, "python3")
            .await
            .unwrap_err()
            .to_string()
    };
    let error = tried(no_source()).await;
    assert!(error.ends_with("cannot be fetched: nobody is there"), "{error}");
    let error = tried(source_of(packed("other").bytes).0).await;
    assert!(
        error.contains("cannot be unpacked: the bundle's bytes are of"),
        "{error}"
    );
}

#[tokio::test]
async fn bundles_that_no_running_revision_names_go_when_they_are_too_many() {
    let dir = tempfile::tempdir().unwrap();
    let bundles: Vec<_> = (0..9).map(|number| packed(&number.to_string())).collect();
    let mut topology = crate::tests::topology(1, 1);
    let spec = Arc::make_mut(&mut topology.deployments[0].spec);
    spec.source.bundle = Some(bundles[0].id);
    for packed in &bundles {
        let code = Code::open(dir.path(), source_of(packed.bytes.clone()).0).unwrap();
        prepare(Some(&code), &bundled(packed.id), "python3")
            .await
            .unwrap();
    }
    let code = Code::open(dir.path(), no_source()).unwrap();
    code.sweep(follow::named(&topology)).await;
    let left =
        |packed: &&mosec_bundle::Packed| dir.path().join("bundles").join(packed.id.to_string()).exists();
    assert_eq!(bundles.iter().filter(left).count(), KEEP_BUNDLES.count + 1);
    assert!(left(&&bundles[0]));
    topology.deployments[0].phase = Phase::Failed {
        reason: String::new(),
    };
    assert!(follow::named(&topology).is_empty());
}

/// Makes a wheel with one module, without any tool for it.
fn wheel(dir: &Path, name: &str) {
    let script = r#"
import sys, zipfile
folder, name = sys.argv[1:]
info = f"{name}-1.0.dist-info"
files = {
    f"{name}.py": "VALUE = 42\n",
    f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
    f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
}
files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
with zipfile.ZipFile(f"{folder}/{name}-1.0-py3-none-any.whl", "w") as wheel:
    for file, text in files.items():
        wheel.writestr(file, text)
"#;
    let made = Command::new("python3")
        .args(["-c", script])
        .arg(dir)
        .arg(name)
        .status();
    assert!(made.unwrap().success());
}

fn requiring(lines: &[&str]) -> PythonSource {
    PythonSource {
        dir: "/".into(),
        requirements: lines.iter().map(|&line| line.to_owned()).collect(),
        ..Default::default()
    }
}

/// A virtual environment whose packages the environments made of it must show.
fn base(dir: &TempDir) -> String {
    let base = dir.path().join("base");
    let made = Command::new("python3")
        .args(["-m", "venv", "--without-pip"])
        .arg(&base)
        .status();
    assert!(made.unwrap().success());
    let lib = fs::read_dir(base.join("lib")).unwrap().next().unwrap().unwrap();
    fs::write(lib.path().join("site-packages/of_the_base.py"), "VALUE = 7\n").unwrap();
    base.join("bin/python").to_string_lossy().into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn requirements_are_installed_once_behind_the_interpreters_own_packages() {
    let dir = tempfile::tempdir().unwrap();
    let python = base(&dir);
    wheel(dir.path(), "required_thing");
    let code = Code::open(&dir.path().join("code"), no_source()).unwrap();
    let links = format!("--find-links {}", dir.path().display());
    let source = requiring(&["--no-index", &links, "required_thing==1.0"]);
    let both = futures_util::future::join_all((0..2).map(|_| prepare(Some(&code), &source, &python))).await;
    let pythons: Vec<_> = both
        .into_iter()
        .map(|prepared| prepared.unwrap().source.python.unwrap())
        .collect();
    assert_eq!(pythons[0], pythons[1]);
    let said = Command::new(&pythons[0])
        .args([
            "-P",
            "-c",
            "import required_thing, of_the_base; print(required_thing.VALUE, of_the_base.VALUE)",
        ])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&said.stdout), "42 7\n", "{said:?}");

    // Nothing is looked for again.
    fs::remove_file(dir.path().join("required_thing-1.0-py3-none-any.whl")).unwrap();
    let later = Code::open(&dir.path().join("code"), no_source()).unwrap();
    let prepared = prepare(Some(&later), &source, &python).await.unwrap();
    assert_eq!(prepared.source.python.as_ref(), Some(&pythons[0]));
    assert!(prepared.bin.unwrap().join("python").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_requirement_says_what_the_installer_said() {
    let dir = tempfile::tempdir().unwrap();
    let code = Code::open(dir.path(), no_source()).unwrap();
    let source = requiring(&["--no-index", "no-such-thing-anywhere==9.9"]);
    let error = prepare(Some(&code), &source, "python3")
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("the requirements cannot be installed with ")
            && error.contains("no-such-thing-anywhere==9.9"),
        "{error}"
    );
    let broken = dir.path().join("broken");
    fs::write(&broken, "#!/bin/sh\necho no python >&2\nexit 1\n").unwrap();
    fs::set_permissions(&broken, fs::Permissions::from_mode(0o755)).unwrap();
    let error = prepare(Some(&code), &source, &broken.to_string_lossy())
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("cannot be looked at: no python"), "{error}");
}
