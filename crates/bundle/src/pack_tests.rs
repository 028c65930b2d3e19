use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::{DEFAULT_MAX_BYTES, unpack};

/// Writes files, and the folders they are in.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, content) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    root
}

fn paths(root: &Path) -> Vec<String> {
    let entries = walk::entries(root).unwrap();
    entries.keys().map(|path| path.display().to_string()).collect()
}

fn packed(root: &Path) -> Packed {
    pack(root, DEFAULT_MAX_BYTES).unwrap()
}

#[test]
fn what_is_of_no_use_elsewhere_stays_out() {
    let root = folder(&[
        ("server.py", ""),
        ("pkg/__init__.py", ""),
        ("pkg/__pycache__/x.cpython-311.pyc", ""),
        ("old.pyc", ""),
        (".git/HEAD", ""),
        (".venv/pyvenv.cfg", ""),
        (".venv/bin/tool", ""),
        (".hidden", ""),
        ("data/large.bin", ""),
        ("data/small.bin", ""),
        ("secret.env", ""),
        ("operator/ca.pem", ""),
        ("operator/cert.pem", ""),
        ("operator/key.pem", ""),
        ("ca/ca-key.pem", ""),
        (".gitignore", "*.env\n"),
        (".mosecignore", "data/*\n!data/small.bin\n"),
    ]);
    let expected = [
        ".gitignore",
        ".hidden",
        ".mosecignore",
        "data",
        "data/small.bin",
        "pkg",
        "pkg/__init__.py",
        "server.py",
    ];
    assert_eq!(paths(root.path()), expected);
}

#[test]
fn the_own_rules_come_before_gits() {
    let root = folder(&[
        ("weights.bin", ""),
        ("other.bin", ""),
        ("models/one", ""),
        (".gitignore", "*.bin\nmodels/\n"),
        (".mosecignore", "!weights.bin\n!models/\n"),
    ]);
    let expected = [
        ".gitignore",
        ".mosecignore",
        "models",
        "models/one",
        "weights.bin",
    ];
    assert_eq!(paths(root.path()), expected);
}

#[test]
fn rules_above_count_within_a_repository_only() {
    let root = folder(&[
        (".gitignore", "*.env\n"),
        ("service/a.py", ""),
        ("service/b.env", ""),
    ]);
    let service = root.path().join("service");
    assert_eq!(paths(&service), ["a.py", "b.env"]);
    fs::create_dir(root.path().join(".git")).unwrap();
    assert_eq!(paths(&service), ["a.py"]);
}

#[test]
fn the_same_content_gives_the_same_bundle() {
    let files = [("b/two.py", "2"), ("a.py", "1")];
    let (one, other) = (folder(&files), folder(&[files[1], files[0]]));
    let mode =
        |mode| fs::set_permissions(other.path().join("a.py"), fs::Permissions::from_mode(mode)).unwrap();
    mode(0o600);
    let ids = || (packed(one.path()).id, packed(other.path()).id);
    let (first, second) = ids();
    assert_eq!(
        first, second,
        "neither order, owner, time nor rights of others matter"
    );
    mode(0o700);
    assert_ne!(ids().0, ids().1, "whether it may be executed does");
    mode(0o600);
    fs::write(other.path().join("a.py"), "3").unwrap();
    assert_ne!(ids().0, ids().1);
}

#[test]
fn what_cannot_travel_is_named() {
    let root = folder(&[("a.py", "")]);
    let link = root.path().join("models");
    symlink("/srv/models", &link).unwrap();
    let error = pack(root.path(), DEFAULT_MAX_BYTES).unwrap_err().to_string();
    assert_eq!(error, "the link models leads out of the folder, to /srv/models");
    fs::remove_file(&link).unwrap();
    let _socket = UnixListener::bind(root.path().join("s")).unwrap();
    let error = pack(root.path(), DEFAULT_MAX_BYTES).unwrap_err().to_string();
    assert!(error.contains("/s is a socket"), "{error}");
    let error = pack(&root.path().join("a.py"), DEFAULT_MAX_BYTES)
        .unwrap_err()
        .to_string();
    assert!(error.ends_with("a.py is no folder"), "{error}");
}

#[test]
fn a_pattern_that_is_not_understood_is_an_error() {
    let root = folder(&[("a.py", ""), (".mosecignore", "{broken\n")]);
    assert!(matches!(
        pack(root.path(), DEFAULT_MAX_BYTES),
        Err(PackError::Walk(_))
    ));
}

#[test]
fn a_folder_that_is_too_large_is_told_by_its_largest_files() {
    // Without a pattern, so that it stays as large.
    let noise = |bytes: usize| -> String {
        let mut state = bytes as u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            char::from(32 + (state >> 58) as u8)
        };
        (0..bytes).map(|_| next()).collect()
    };
    let files: Vec<_> = (1..=7).map(|n| (format!("{n}.bin"), noise(n * 10_000))).collect();
    let files: Vec<_> = files
        .iter()
        .map(|(path, text)| (path.as_str(), text.as_str()))
        .collect();
    let root = folder(&files);
    let error = pack(root.path(), 100_000).unwrap_err().to_string();
    let largest = "its largest files are 7.bin (68.4 KiB), 6.bin (58.6 KiB), 5.bin (48.8 KiB), 4.bin (39.1 KiB), 3.bin (29.3 KiB)";
    assert!(
        error.contains("more than 97.7 KiB compressed") && error.contains(largest),
        "{error}"
    );
    assert!(
        error.contains(".mosecignore") && !error.contains("2.bin"),
        "{error}"
    );
    for limit in 0..600 {
        let small = folder(&[("a", "b")]);
        match pack(small.path(), limit) {
            Ok(packed) => assert!(packed.bytes.len() as u64 <= limit),
            Err(error) => assert!(matches!(error, PackError::TooLarge { .. }), "{error}"),
        }
    }
}

/// Files, links, and what they hold, below folders that may clash.
fn trees() -> impl Strategy<Value = Vec<(String, Vec<u8>, bool)>> {
    let name = "[a-c]{1,2}|[x-z ä.-]{1,3}x|n{100}";
    let path = prop::collection::vec(name, 1..4).prop_map(|parts| parts.join("/"));
    let file = (path, prop::collection::vec(any::<u8>(), 0..200), any::<bool>());
    prop::collection::vec(file, 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_packed_comes_out_again(tree in trees(), links in prop::collection::vec("[a-c]{1,2}", 0..3)) {
        let root = tempfile::tempdir().unwrap();
        for (path, content, executable) in tree {
            let path = root.path().join(path);
            // A file may be where another one's folder would have to be.
            if fs::create_dir_all(path.parent().unwrap()).is_ok() && fs::write(&path, content).is_ok() {
                let mode = if executable { 0o755 } else { 0o644 };
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            }
        }
        for (number, target) in links.iter().enumerate() {
            symlink(target, root.path().join(format!("link-{number}"))).unwrap();
        }
        let packed = packed(root.path());
        let out = tempfile::tempdir().unwrap();
        let to = out.path().join("folder");
        unpack(&packed.bytes, &packed.id, &to, packed.unpacked_bytes).unwrap();
        prop_assert_eq!(walk::entries(root.path()).unwrap(), walk::entries(&to).unwrap());
        prop_assert_eq!(super::pack(&to, DEFAULT_MAX_BYTES).unwrap().id, packed.id, "down to the bytes");
        prop_assert_eq!(fs::read_dir(out.path()).unwrap().count(), 1, "nothing else is left");
    }
}
