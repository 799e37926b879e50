//! The budget of bytes for everything that waits: heads and bodies of requests, answers that are not taken yet, lines
//! between instances. Owns the count and the default limit; what is refused, and when, is its users' to decide.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// The default budget is one part in so many of the available memory: counted bytes have uncounted copies, and the allocator
/// keeps freed memory.
const PART: usize = 4;
/// The smallest default, in bytes.
const LEAST: usize = 16 << 20;

/// For whom bytes are reserved: how much of the budget may be in use before they are refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Share {
    /// Buffers that are kept for their next use: an eighth of the budget.
    Spare,
    /// Heads, and documents that are open to strangers: a quarter of the budget.
    Strangers,
    /// Requests of clients: half of the budget.
    Clients,
    /// Results of functions that ran, and what instances send each other: seven eighths.
    Results,
}

/// A budget of bytes, shared by all who hold some of it.
#[derive(Debug)]
pub(crate) struct Budget {
    /// The most bytes that are ever reserved, unless they are taken.
    pub(crate) limit: usize,
    held: AtomicUsize,
}

/// What waits takes as much of the budget as a share of it may.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct NoRoom;

/// Bytes of a [`Budget`], given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Reserved {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            held: AtomicUsize::new(0),
        })
    }

    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Reserves `bytes` of the part of the budget that `share` may use.
    pub(crate) fn reserve(
        self: &Arc<Self>,
        bytes: usize,
        share: Share,
    ) -> Result<Reserved, NoRoom> {
        let mut reserved = self.take(0);
        reserved.grow(bytes, share)?;
        Ok(reserved)
    }

    /// Counts `bytes` that are there already and cannot be refused.
    pub(crate) fn take(self: &Arc<Self>, bytes: usize) -> Reserved {
        let mut taken = Reserved {
            budget: Arc::clone(self),
            bytes: 0,
        };
        taken.take(bytes);
        taken
    }

    /// Whether `share` has room for `bytes` more now.
    pub(crate) fn has_room(&self, bytes: usize, share: Share) -> bool {
        self.held().saturating_add(bytes) <= self.most(share)
    }

    fn most(&self, share: Share) -> usize {
        match share {
            Share::Spare => self.limit / 8,
            Share::Strangers => self.limit / 4,
            Share::Clients => self.limit / 2,
            Share::Results => self.limit - self.limit / 8,
        }
    }
}

impl Reserved {
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn give_back(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.budget.held.fetch_sub(bytes, Ordering::Relaxed);
        self.bytes -= bytes;
    }

    /// Gives all of it back. If that is nothing, the counter that all threads share is not touched: connections do this at
    /// every read.
    pub(crate) fn clear(&mut self) {
        if self.bytes > 0 {
            self.give_back(self.bytes);
        }
    }

    /// Counts `bytes` more that are there already and cannot be refused.
    pub(crate) fn take(&mut self, bytes: usize) {
        self.budget.held.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
    }

    /// Reserves `bytes` more; there is always room for 0. If there is no room, what was reserved before stays reserved.
    pub(crate) fn grow(&mut self, bytes: usize, share: Share) -> Result<(), NoRoom> {
        if bytes == 0 {
            return Ok(());
        }
        let before = self.budget.held.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > self.budget.most(share) {
            self.budget.held.fetch_sub(bytes, Ordering::Relaxed);
            return Err(NoRoom);
        }
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.clear();
    }
}

/// The limit where no setting says otherwise: a quarter of what the process may use. That is the limit of its control group
/// (version 2 or 1) or what the machine has to spare, whichever is less.
pub(crate) fn default_limit() -> usize {
    let root = Path::new("/");
    let bounds = [of_cgroups(root), available(root)];
    let least = bounds.into_iter().flatten().min();
    least.map_or(LEAST, |bytes| (bytes / PART).max(LEAST))
}

/// The least limit of the process's control group and those above it.
fn of_cgroups(root: &Path) -> Option<usize> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let limits = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let (folder, file) = match controllers {
            "" => ("sys/fs/cgroup", "memory.max"),
            controllers if controllers.split(',').any(|name| name == "memory") => {
                ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => return None,
        };
        let top = root.join(folder);
        let own = top.join(path.trim_start_matches('/'));
        // In a container its own group is mounted at the top, and its path is not there.
        let up = own.ancestors().take_while(|above| above.starts_with(&top));
        up.filter_map(|group| number(group.join(file))).min()
    });
    limits.min()
}

/// A limit, which version 1 writes as the largest number of whole pages where there is none.
fn number(file: PathBuf) -> Option<usize> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

fn available(root: &Path) -> Option<usize> {
    let info = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: usize = line.trim().strip_suffix(" kB")?.parse().ok()?;
    kib.checked_mul(1 << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reserved_comes_back() {
        let budget = Budget::new(800);
        let mut held = budget.reserve(300, Share::Clients).unwrap();
        assert_eq!(budget.reserve(101, Share::Clients).unwrap_err(), NoRoom);
        held.grow(100, Share::Clients).unwrap();
        let results = budget.reserve(300, Share::Results).unwrap();
        assert!(budget.reserve(1, Share::Results).is_err());
        assert!(held.grow(usize::MAX / 2, Share::Results).is_err());
        let taken = budget.take(1000);
        assert_eq!(budget.held(), 1700);
        drop((held, results, taken));
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn the_least_limit_of_all_control_groups_counts() {
        let root = tempfile::TempDir::new().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("proc/self/cgroup", "3:cpu:/x\n0::/a/b\n");
        write("proc/meminfo", "MemTotal: 9 kB\nMemAvailable:    2048 kB\n");
        assert_eq!(of_cgroups(root.path()), None);
        write("sys/fs/cgroup/a/b/memory.max", "max\n");
        write("sys/fs/cgroup/a/memory.max", "1000000\n");
        write("sys/fs/cgroup/memory.max", "3000000\n");
        assert_eq!(of_cgroups(root.path()), Some(1_000_000));
        write("proc/self/cgroup", "5:cpu,memory:/none\n");
        write("sys/fs/cgroup/memory/memory.limit_in_bytes", "2000000\n");
        assert_eq!(of_cgroups(root.path()), Some(2_000_000));
        assert_eq!(available(root.path()), Some(2 << 20));
    }
}
