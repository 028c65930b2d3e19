//! Series that several have in common, and that go with the last of them.

use std::collections::HashMap;
use std::hash::Hash;

use parking_lot::Mutex;

/// How many hold the series of each key.
#[derive(Debug)]
pub struct Holders<K>(Mutex<HashMap<K, usize>>);

impl<K> Default for Holders<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Clone + Eq + Hash> Holders<K> {
    /// Counts a holder of each of `keys`. `make` takes the series: under the lock, so that nobody removes them meanwhile.
    pub fn hold<T>(&self, keys: &[K], make: impl FnOnce() -> T) -> T {
        let mut holders = self.0.lock();
        for key in keys {
            *holders.entry(key.clone()).or_default() += 1;
        }
        make()
    }

    /// Lets go of `keys`. `remove` removes the series of one that nobody holds any more: under the lock, so that nobody
    /// takes them meanwhile.
    pub fn release(&self, keys: &[K], remove: impl Fn(&K)) {
        let mut holders = self.0.lock();
        for key in keys {
            let left = holders.get_mut(key).map_or(0, |count| {
                *count -= 1;
                *count
            });
            if left == 0 {
                holders.remove(key);
                remove(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn the_last_to_let_go_removes() {
        let (holders, removed) = (Holders::default(), RefCell::new(Vec::new()));
        let release = |keys: &[&'static str]| holders.release(keys, |&key| removed.borrow_mut().push(key));
        assert_eq!(holders.hold(&["shared", "first"], || 1), 1);
        holders.hold(&["shared", "second"], || ());
        release(&["shared", "first"]);
        assert_eq!(*removed.borrow(), ["first"]);
        release(&["shared", "second"]);
        assert_eq!(*removed.borrow(), ["first", "shared", "second"]);
        holders.hold(&["first"], || ());
        release(&["first"]);
        assert_eq!(removed.borrow().len(), 4);
    }
}
