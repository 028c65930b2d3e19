use proptest::prelude::*;
use tar::{Builder, Header};
use tempfile::TempDir;

use super::*;

/// An archive as no `pack` would make it.
struct Hostile(Builder<Vec<u8>>);

impl Hostile {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    fn header(kind: EntryType, path: &str, bytes: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o4777);
        header.set_size(bytes);
        // Written past the checks of `set_path`.
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header
    }

    fn file(mut self, path: &str, content: &str) -> Self {
        let mut header = Self::header(EntryType::Regular, path, content.len() as u64);
        header.set_cksum();
        self.0.append(&header, content.as_bytes()).unwrap();
        self
    }

    fn other(mut self, kind: EntryType, path: &str, target: &str) -> Self {
        let mut header = Self::header(kind, path, 0);
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        self.0.append(&header, io::empty()).unwrap();
        self
    }

    fn bytes(self) -> Vec<u8> {
        zstd::encode_all(&*self.0.into_inner().unwrap(), 1).unwrap()
    }
}

/// Unpacks into a folder of its own, and sees that nothing is left where it fails.
fn tried(bytes: &[u8], max_bytes: u64) -> (TempDir, Result<(), UnpackError>) {
    let out = tempfile::tempdir().unwrap();
    let inner = out.path().join("inner");
    fs::create_dir(&inner).unwrap();
    let result = unpack(bytes, &id_of(bytes), &inner.join("to"), max_bytes);
    let left = fs::read_dir(&inner).unwrap().count();
    assert_eq!(left, usize::from(result.is_ok()), "{result:?}");
    assert_eq!(
        fs::read_dir(out.path()).unwrap().count(),
        1,
        "nothing is beside it"
    );
    (out, result)
}

fn refusal(archive: Hostile) -> UnpackError {
    tried(&archive.bytes(), 1 << 20).1.unwrap_err()
}

#[test]
fn paths_that_lead_out_are_refused() {
    for path in ["../x", "/tmp/x", "a/../../x", "a/..", "."] {
        let archive = Hostile::new()
            .other(EntryType::Directory, "a", "")
            .file(path, "no");
        let error = refusal(archive);
        assert!(matches!(error, UnpackError::Outside { .. }), "{path}: {error}");
    }
}

#[test]
fn links_that_lead_out_are_refused() {
    for target in ["/etc", "..", "../../x", "a/../.."] {
        let archive =
            Hostile::new()
                .other(EntryType::Directory, "a", "")
                .other(EntryType::Symlink, "link", target);
        let error = refusal(archive);
        assert!(matches!(error, UnpackError::LeadsOut(_)), "{target}: {error}");
    }
    let through_another = Hostile::new()
        .other(EntryType::Directory, "a", "")
        .other(EntryType::Symlink, "a/up", "..")
        .other(EntryType::Symlink, "x", "a/up/../secret");
    assert!(matches!(refusal(through_another), UnpackError::LeadsOut(_)));
}

#[test]
fn nothing_is_written_through_a_link_or_over_another_entry() {
    let through = Hostile::new()
        .other(EntryType::Symlink, "link", "/tmp")
        .file("link/x", "no");
    let over = Hostile::new().other(EntryType::Symlink, "x", "y").file("x", "no");
    let twice = Hostile::new().file("x", "1").file("./x", "2");
    let nowhere = Hostile::new().file("no/folder", "");
    let file_as_folder = Hostile::new().file("x", "").file("x/y", "");
    for archive in [through, over, twice, nowhere, file_as_folder] {
        let error = refusal(archive);
        assert!(matches!(error, UnpackError::Misplaced { .. }), "{error}");
    }
}

#[test]
fn devices_and_hard_links_are_refused() {
    for kind in [
        EntryType::Link,
        EntryType::Char,
        EntryType::Block,
        EntryType::Fifo,
    ] {
        let error = refusal(Hostile::new().other(kind, "x", "/etc/passwd"));
        assert!(matches!(error, UnpackError::Special { .. }), "{kind:?}: {error}");
    }
}

#[test]
fn a_bundle_that_grows_beyond_its_bound_is_refused() {
    let zeros = "0".repeat(1 << 20);
    let bomb = Hostile::new().file("a", &zeros).file("b", &zeros).bytes();
    assert!(bomb.len() < 4096);
    let error = tried(&bomb, (2 << 20) - 1).1.unwrap_err();
    assert!(matches!(error, UnpackError::TooLarge { .. }), "{error}");
    assert!(tried(&bomb, 2 << 20).1.is_ok());
}

#[test]
fn special_bits_do_not_come_out() {
    use std::os::unix::fs::PermissionsExt as _;
    let (out, result) = tried(&Hostile::new().file("x", "1").bytes(), 1);
    result.unwrap();
    let mode = fs::metadata(out.path().join("inner/to/x"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7000, 0, "{mode:o}");
}

#[test]
fn other_bytes_than_the_ids_are_refused() {
    let out = tempfile::tempdir().unwrap();
    let bytes = Hostile::new().file("x", "1").bytes();
    let error = unpack(&bytes, &id_of(b"other"), &out.path().join("to"), 1).unwrap_err();
    assert!(matches!(error, UnpackError::Hash { .. }), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_bytes_are_unpacked_or_refused(at in 0..2048usize, flip in 1..=255u8, cut in 0..2048usize, raw in any::<bool>()) {
        let archive = Hostile::new()
            .other(EntryType::Directory, "a", "")
            .file("a/file", "content")
            .other(EntryType::Symlink, "link", "a/file");
        let mut tar = archive.0.into_inner().unwrap();
        let mut bytes = if raw {
            let at = at % tar.len();
            tar[at] ^= flip;
            tar.truncate(tar.len() - cut % tar.len());
            zstd::encode_all(&*tar, 1).unwrap()
        } else {
            zstd::encode_all(&*tar, 1).unwrap()
        };
        if !raw {
            let at = at % bytes.len();
            bytes[at] ^= flip;
            bytes.truncate(bytes.len() - cut % bytes.len());
        }
        let _ = tried(&bytes, 1 << 16);
    }
}
