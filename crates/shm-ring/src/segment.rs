//! One piece of shared memory: made, handed on by file descriptor, mapped.
//!
//! A segment has a name in `/dev/shm` only while it is being made; processes get it by file descriptor, so it goes with
//! the last of them, however they end. All of its pages are allocated at once: a full `/dev/shm` is an error here and not
//! a SIGBUS later. The agent trusts its workers not to truncate a segment: they belong to the same node and user.

mod names;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

use rustix::fs::{FallocateFlags, MemfdFlags, Mode, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use rustix::shm;
use serde::{Deserialize, Serialize};
use shared_memory::{Shmem, ShmemConf};

pub use names::sweep_stale;

/// Where shared memory comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ShmBackend {
    /// `/dev/shm`. Where that is full, as in a container with the default 64 MiB, `Memfd` takes its place.
    #[default]
    Posix,
    /// Anonymous memory, bounded by the container's memory limit alone.
    Memfd,
}

/// How segments are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShmConfig {
    pub backend: ShmBackend,
    /// First part of every name in `/dev/shm`.
    pub prefix: String,
}

impl Default for ShmConfig {
    fn default() -> Self {
        Self {
            backend: ShmBackend::default(),
            prefix: "mosec".to_owned(),
        }
    }
}

/// Why shared memory could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SegmentError {
    #[error("shared memory of {bytes} bytes could not be created")]
    Create { bytes: usize, source: io::Error },
    #[error("no room for {bytes} bytes of shared memory: enlarge /dev/shm or the memory limit")]
    NoRoom { bytes: usize },
    #[error("shared memory of {bytes} bytes could not be mapped")]
    Map { bytes: usize, source: io::Error },
    #[error("shared memory is {found} bytes long, expected {expected}")]
    WrongSize { expected: usize, found: u64 },
}

/// An access outside of a segment. Numbers that come from the other side lead to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes at {offset} lie outside of a segment of {bytes} bytes")]
pub struct OutOfBounds {
    pub offset: usize,
    pub len: usize,
    pub bytes: usize,
}

/// A mapped piece of shared memory.
pub(crate) struct Segment {
    start: NonNull<u8>,
    bytes: usize,
    fd: OwnedFd,
    mapping: Mapping,
}

/// Who undoes the mapping.
enum Mapping {
    /// The crate that made it.
    Posix {
        _shmem: Shmem,
    },
    Own,
}

// SAFETY: the mapping belongs to the process, not to a thread; `Shmem` is only `!Send` for its raw pointer, and is kept
// for its drop alone, which unmaps and closes. All access goes through the unsafe methods below, whose callers keep
// threads apart, and through atomics.
unsafe impl Send for Segment {}
// SAFETY: as above.
unsafe impl Sync for Segment {}

impl Segment {
    /// Makes a zeroed segment, of the other backend where `/dev/shm` has no room.
    pub(crate) fn create(config: &ShmConfig, bytes: usize) -> Result<Self, SegmentError> {
        if config.backend == ShmBackend::Memfd {
            return Self::create_memfd(bytes);
        }
        Self::create_posix(&config.prefix, bytes).or_else(|error| {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, bytes, "/dev/shm cannot be used, taking anonymous memory");
            Self::create_memfd(bytes)
        })
    }

    fn create_posix(prefix: &str, bytes: usize) -> Result<Self, SegmentError> {
        let create = |source| SegmentError::Create { bytes, source };
        let name = names::next(prefix);
        let mut shmem = ShmemConf::new()
            .os_id(&name)
            .size(bytes)
            .create()
            .map_err(|error| create(io::Error::other(error)))?;
        // From here to the unlink a SIGKILL would leave the name behind; `sweep_stale` is for that.
        let fd = shm::open(&name, shm::OFlags::RDWR, Mode::empty());
        let unlinked = shm::unlink(&name);
        shmem.set_owner(false); // its drop must not unlink a name that is gone
        unlinked.map_err(|errno| create(errno.into()))?;
        let fd = fd.map_err(|errno| create(errno.into()))?;
        allocate(&fd, bytes)?;
        let start = NonNull::new(shmem.as_ptr()).ok_or_else(|| create(io::Error::other("null mapping")))?;
        Ok(Self {
            start,
            bytes,
            fd,
            mapping: Mapping::Posix { _shmem: shmem },
        })
    }

    fn create_memfd(bytes: usize) -> Result<Self, SegmentError> {
        let create = |errno: Errno| SegmentError::Create {
            bytes,
            source: errno.into(),
        };
        let fd = rustix::fs::memfd_create("mosec", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(create)?;
        allocate(&fd, bytes)?;
        // A worker that truncated it would kill the agent by SIGBUS.
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
            .map_err(create)?;
        Self::map(fd, bytes)
    }

    /// Maps the segment behind `fd`, which must be exactly `bytes` long.
    pub(crate) fn map(fd: OwnedFd, bytes: usize) -> Result<Self, SegmentError> {
        let map = |errno: Errno| SegmentError::Map {
            bytes,
            source: errno.into(),
        };
        let found = rustix::fs::fstat(&fd).map_err(map)?.st_size;
        if usize::try_from(found) != Ok(bytes) || bytes == 0 {
            return Err(SegmentError::WrongSize {
                expected: bytes,
                found: found.unsigned_abs(),
            });
        }
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &fd,
                0,
            )
        }
        .map_err(map)?;
        let start = NonNull::new(start.cast()).ok_or(map(Errno::NOMEM))?;
        Ok(Self {
            start,
            bytes,
            fd,
            mapping: Mapping::Own,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The address of `len` bytes at `offset`, checked. Segments start at a page, so alignment is that of `offset`.
    pub(crate) fn at(&self, offset: usize, len: usize) -> Result<NonNull<u8>, OutOfBounds> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.bytes);
        if !inside {
            return Err(OutOfBounds {
                offset,
                len,
                bytes: self.bytes,
            });
        }
        // SAFETY: the offset was just found to lie in the mapping.
        Ok(unsafe { self.start.add(offset) })
    }

    /// The word at `offset`, which is a multiple of four, for either side's atomic use.
    pub(crate) fn atomic_u32(&self, offset: usize) -> Result<&AtomicU32, OutOfBounds> {
        let word = self.aligned(offset, 4)?;
        // SAFETY: mapped, aligned, and any value is valid. What races with a plain access is one of the other process, to
        // which this memory is as volatile.
        Ok(unsafe { AtomicU32::from_ptr(word.as_ptr().cast()) })
    }

    /// As [`Segment::atomic_u32`], eight bytes wide.
    pub(crate) fn atomic_u64(&self, offset: usize) -> Result<&AtomicU64, OutOfBounds> {
        let word = self.aligned(offset, 8)?;
        // SAFETY: as above.
        Ok(unsafe { AtomicU64::from_ptr(word.as_ptr().cast()) })
    }

    fn aligned(&self, offset: usize, len: usize) -> Result<NonNull<u8>, OutOfBounds> {
        if offset.is_multiple_of(len) {
            return self.at(offset, len);
        }
        Err(OutOfBounds {
            offset,
            len,
            bytes: self.bytes,
        })
    }

    /// Copies `source` to `offset`.
    ///
    /// # Safety
    /// No other thread of this process may access the bytes meanwhile.
    pub(crate) unsafe fn write(&self, offset: usize, source: &[u8]) -> Result<(), OutOfBounds> {
        let target = self.at(offset, source.len())?;
        // SAFETY: `target` is mapped for that many bytes, and `source` is private memory, so they do not overlap.
        unsafe {
            target
                .as_ptr()
                .copy_from_nonoverlapping(source.as_ptr(), source.len())
        };
        Ok(())
    }

    /// Copies the bytes at `offset` into `target`. A peer that writes meanwhile yields mixed bytes, nothing worse.
    ///
    /// # Safety
    /// No other thread of this process may write the bytes meanwhile.
    pub(crate) unsafe fn read(&self, offset: usize, target: &mut [u8]) -> Result<(), OutOfBounds> {
        let source = self.at(offset, target.len())?;
        // SAFETY: `source` is mapped for that many bytes, and `target` is private memory, so they do not overlap.
        unsafe {
            target
                .as_mut_ptr()
                .copy_from_nonoverlapping(source.as_ptr(), target.len())
        };
        Ok(())
    }

    /// Copies the bytes at `offset` into `target`, looking at each once: what is checked is what is used, even where a
    /// peer writes meanwhile. For tables; slower than [`Segment::read`] where `offset` is not a multiple of eight.
    ///
    /// # Safety
    /// As for [`Segment::read`].
    pub(crate) unsafe fn read_once(&self, offset: usize, target: &mut [u8]) -> Result<(), OutOfBounds> {
        let source = self.at(offset, target.len())?;
        let (words, rest) = if offset.is_multiple_of(8) {
            target.as_chunks_mut()
        } else {
            (&mut [][..], target)
        };
        for (index, word) in words.iter_mut().enumerate() {
            // SAFETY: inside the range just checked, and aligned, as segments start at a page.
            *word = unsafe { source.cast::<u64>().add(index).read_volatile() }.to_ne_bytes();
        }
        let done = words.len() * 8;
        for (index, byte) in rest.iter_mut().enumerate() {
            // SAFETY: inside the range just checked.
            *byte = unsafe { source.add(done + index).read_volatile() };
        }
        Ok(())
    }

    /// Copies `len` bytes at `offset` to a new vector, without zeroing it first.
    ///
    /// # Safety
    /// As for [`Segment::read`].
    pub(crate) unsafe fn to_vec(&self, offset: usize, len: usize) -> Result<Vec<u8>, OutOfBounds> {
        let source = self.at(offset, len)?;
        let mut copy = Vec::with_capacity(len);
        // SAFETY: the vector has room for `len` bytes, all of which are written before its length says so.
        unsafe {
            source.as_ptr().copy_to_nonoverlapping(copy.as_mut_ptr(), len);
            copy.set_len(len);
        }
        Ok(copy)
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        if let Mapping::Own = self.mapping {
            // SAFETY: this value made the mapping, and whoever used it has held a reference to this value.
            if let Err(error) = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.bytes) } {
                tracing::error!(%error, "a segment could not be unmapped");
            }
        }
    }
}

impl std::fmt::Debug for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Segment")
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

/// Gives the object all of its pages now.
fn allocate(fd: &OwnedFd, bytes: usize) -> Result<(), SegmentError> {
    loop {
        match rustix::fs::fallocate(fd, FallocateFlags::empty(), 0, bytes as u64) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::NOSPC | Errno::NOMEM) => return Err(SegmentError::NoRoom { bytes }),
            Err(errno) => {
                return Err(SegmentError::Create {
                    bytes,
                    source: errno.into(),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(backend: ShmBackend) -> ShmConfig {
        ShmConfig {
            backend,
            prefix: "mosec-segment-test".to_owned(),
        }
    }

    #[test]
    fn both_backends_share_bytes_between_two_mappings() {
        for backend in [ShmBackend::Posix, ShmBackend::Memfd] {
            let ours = Segment::create(&config(backend), 8192).unwrap();
            let theirs = Segment::map(ours.fd().try_clone_to_owned().unwrap(), 8192).unwrap();
            // SAFETY: one thread.
            let copy = unsafe {
                ours.write(4000, b"across a page").unwrap();
                theirs.to_vec(4000, 13).unwrap()
            };
            assert_eq!(copy, b"across a page");
        }
    }

    #[test]
    fn no_name_is_left() {
        let _segment = Segment::create(&config(ShmBackend::Posix), 4096).unwrap();
        assert_eq!(
            names::existing("mosec-segment-test").unwrap(),
            Vec::<String>::new()
        );
    }

    #[test]
    fn accesses_outside_are_refused() {
        let segment = Segment::create(&config(ShmBackend::Memfd), 4096).unwrap();
        for (offset, len) in [(4096, 1), (4000, 97), (usize::MAX, 2), (0, 4097)] {
            assert_eq!(
                segment.at(offset, len),
                Err(OutOfBounds {
                    offset,
                    len,
                    bytes: 4096
                })
            );
        }
        assert!(segment.at(4096, 0).is_ok());
        for offset in [4096, 4093, 2, usize::MAX - 3] {
            assert!(segment.atomic_u32(offset).is_err(), "{offset}");
        }
        assert!(segment.atomic_u64(4092).is_err() && segment.atomic_u64(4088).is_ok());
    }

    #[test]
    fn a_segment_of_another_size_is_refused() {
        let segment = Segment::create(&config(ShmBackend::Memfd), 4096).unwrap();
        let fd = segment.fd().try_clone_to_owned().unwrap();
        assert!(matches!(
            Segment::map(fd, 8192),
            Err(SegmentError::WrongSize {
                expected: 8192,
                found: 4096
            })
        ));
    }
}
