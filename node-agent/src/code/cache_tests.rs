use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::Notify;

use super::*;

const KEEP: Keep = Keep {
    count: 1,
    bytes: 1000,
};

fn open(dir: &Path) -> Cache {
    Cache::open(dir.to_owned(), KEEP).unwrap()
}

/// Makes a folder with one file.
fn good(path: PathBuf) -> BoxFuture<'static, Result<(), CodeError>> {
    async move {
        fs::create_dir(&path).unwrap();
        fs::write(path.join("file"), "content").unwrap();
        Ok(())
    }
    .boxed()
}

fn bad(path: PathBuf) -> BoxFuture<'static, Result<(), CodeError>> {
    async move {
        fs::create_dir(&path).unwrap();
        Err(CodeError::NoSource)
    }
    .boxed()
}

fn unused(_: PathBuf) -> BoxFuture<'static, Result<(), CodeError>> {
    panic!("it is there")
}

fn names(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = names
        .map(|item| item.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_folder_is_made_once_and_found_again() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).ensure("a", good).await.unwrap();
    let cache = open(dir.path());
    cache.ensure("a", unused).await.unwrap();
    assert_eq!(fs::read(cache.path("a").join("file")).unwrap(), b"content");
    assert!(cache.ensure("b", bad).await.is_err());
    assert_eq!(names(dir.path()), ["a", "a.complete"], "a failure leaves nothing");
    cache.ensure("b", good).await.unwrap();
    cache.ensure("b", unused).await.unwrap();
}

#[tokio::test]
async fn all_who_ask_at_the_same_time_share_one_try() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Arc::new(open(dir.path()));
    let (tries, go) = (Arc::new(AtomicU32::new(0)), Arc::new(Notify::new()));
    let asking: Vec<_> = (0..5)
        .map(|_| {
            let (cache, tries, go) = (cache.clone(), tries.clone(), go.clone());
            tokio::spawn(async move {
                let making = |_| {
                    async move {
                        tries.fetch_add(1, Ordering::Relaxed);
                        go.notified().await;
                        Err(CodeError::NoSource)
                    }
                    .boxed()
                };
                cache.ensure("a", making).await
            })
        })
        .collect();
    // One has begun; the others wait for it, or find its result.
    while tries.load(Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    tokio::task::yield_now().await;
    go.notify_one();
    for asked in asking {
        assert!(matches!(asked.await.unwrap(), Err(CodeError::NoSource)));
    }
    assert_eq!(tries.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn what_nobody_waits_for_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let given_up = Arc::new(());
    let alive = given_up.clone();
    let endless = |_| {
        async move {
            let _alive = alive;
            std::future::pending().await
        }
        .boxed()
    };
    let asked = cache.ensure("a", endless);
    assert!(asked.now_or_never().is_none());
    assert_eq!(Arc::strong_count(&given_up), 1);
    cache.ensure("a", good).await.unwrap();
}

#[tokio::test]
async fn what_was_interrupted_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).ensure("a", good).await.unwrap();
    fs::create_dir(dir.path().join("half")).unwrap();
    fs::create_dir(dir.path().join(".removed-b")).unwrap();
    fs::write(dir.path().join("gone.complete"), "").unwrap();
    open(dir.path());
    assert_eq!(names(dir.path()), ["a", "a.complete"]);
}

#[tokio::test]
async fn what_is_named_or_held_or_used_last_stays() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let held = cache.ensure("held", good).await.unwrap();
    for name in ["named", "old", "new"] {
        cache.ensure(name, good).await.unwrap();
    }
    let old = File::options().append(true).open(cache.marker("old")).unwrap();
    old.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    cache.sweep(&BTreeSet::from(["named".into()])).unwrap();
    let expected = [
        "held",
        "held.complete",
        "named",
        "named.complete",
        "new",
        "new.complete",
    ];
    assert_eq!(names(dir.path()), expected);
    let again = cache.ensure("old", good).await.unwrap();
    drop((held, again));
    cache.sweep(&BTreeSet::new()).unwrap();
    assert_eq!(names(dir.path()).len(), 2, "one is kept: {:?}", names(dir.path()));
}
