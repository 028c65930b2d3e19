//! One suite for both stores, and what only files can suffer.

use std::fs;
use std::time::SystemTime;

use super::*;
use crate::bundles::files::BundleFiles;
use crate::bundles::memory::MemoryBundles;

fn bundle(text: &str) -> (BundleId, Bytes) {
    let bytes = Bytes::from(text.to_owned());
    (mosec_bundle::id_of(&bytes), bytes)
}

fn ids(store: &dyn BundleStore) -> Vec<BundleId> {
    store
        .list()
        .unwrap()
        .into_iter()
        .map(|stored| stored.id)
        .collect()
}

/// What every store does.
fn conforms(store: &dyn BundleStore) {
    let (one, first) = bundle("one");
    let (two, second) = bundle("two");
    assert_eq!(ids(store), []);
    assert_eq!(store.read(&one).unwrap(), None);
    assert!(!store.renew(&one).unwrap());

    let wrong = store.put(&one, &second).unwrap_err();
    assert!(matches!(wrong, StoreError::Hash { expected, found } if (expected, found) == (one, two)));
    assert_eq!(ids(store), [], "nothing is kept under a wrong name");

    for _ in 0..2 {
        store.put(&one, &first).unwrap();
        store.put(&two, &second).unwrap();
        let mut expected = [one, two];
        expected.sort();
        assert_eq!(ids(store), expected, "a second put changes nothing");
        assert_eq!(store.read(&one).unwrap(), Some(first.clone()));
    }
    let ages = || store.list().unwrap().into_iter().map(|stored| stored.age);
    while ages().min() < Some(Duration::from_millis(1)) {
        std::thread::yield_now();
    }
    assert!(store.renew(&one).unwrap());
    let age_of = |id| {
        store
            .list()
            .unwrap()
            .iter()
            .find(|stored| stored.id == id)
            .unwrap()
            .age
    };
    assert!(age_of(one) < age_of(two), "one is younger now");

    store.remove(&one).unwrap();
    store.remove(&one).unwrap();
    assert_eq!((ids(store), store.read(&one).unwrap()), (vec![two], None));
    let (empty, nothing) = bundle("");
    store.put(&empty, &nothing).unwrap();
    assert_eq!(store.read(&empty).unwrap(), Some(nothing));
}

#[test]
fn memory_conforms() {
    conforms(&MemoryBundles::default());
}

#[test]
fn files_conform_and_outlive_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bundles");
    let store = BundleFiles::open(&path).unwrap();
    conforms(&store);
    let kept = ids(&store);
    fs::write(path.join(format!("{}.0.tmp", kept[0])), "half").unwrap();
    fs::write(path.join("notes.txt"), "not ours").unwrap();
    let store = BundleFiles::open(&path).unwrap();
    assert_eq!(ids(&store), kept);
    let left: Vec<_> = fs::read_dir(&path)
        .unwrap()
        .map(|item| item.unwrap().file_name())
        .collect();
    assert_eq!(left.len(), kept.len() + 1, "half a file is gone: {left:?}");
}

#[test]
fn a_damaged_file_is_as_good_as_none() {
    let dir = tempfile::tempdir().unwrap();
    let store = BundleFiles::open(dir.path()).unwrap();
    let (id, bytes) = bundle("content");
    for damaged in ["contenT", "conten", ""] {
        store.put(&id, &bytes).unwrap();
        fs::write(dir.path().join(id.to_string()), damaged).unwrap();
        assert_eq!(
            (store.read(&id).unwrap(), ids(&store)),
            (None, vec![]),
            "{damaged:?}"
        );
    }
}

#[test]
fn a_file_of_the_future_is_not_old() {
    let dir = tempfile::tempdir().unwrap();
    let store = BundleFiles::open(dir.path()).unwrap();
    let (id, bytes) = bundle("content");
    store.put(&id, &bytes).unwrap();
    let file = fs::File::options()
        .append(true)
        .open(dir.path().join(id.to_string()))
        .unwrap();
    file.set_modified(SystemTime::now() + Duration::from_secs(3600))
        .unwrap();
    assert_eq!(store.list().unwrap()[0].age, Duration::ZERO);
}
