//! How many files the process may have open, and what share of them each listener's connections may take.

#[cfg(feature = "cli")]
use nix::sys::resource::setrlimit;
use nix::sys::resource::{Resource, getrlimit};

/// What is assumed where the limit cannot be read.
const USUAL: u64 = 1024;
/// The most connections of one listener, however many files may be open.
const MOST: usize = 8192;
/// What an idle connection takes, in bytes: its first buffer and its task.
const EACH: usize = 16 << 10;
/// The most connections of the listener for scrapers.
const MOST_SCRAPERS: usize = 64;

/// Raises the soft limit of open files to the hard one, and returns what it was: a program that this one starts may count on the
/// usual limit, as one does that closes all files that it might have, or that waits for them by `select`.
#[cfg(feature = "cli")]
pub(crate) fn raise() -> std::io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(soft)
}

/// Makes `soft` the soft limit.
///
/// # Errors
/// It is above the hard one.
#[cfg(feature = "cli")]
pub(crate) fn lower(soft: u64) -> std::io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?)
}

/// How many files the process may have open now.
pub(crate) fn now() -> usize {
    let soft = getrlimit(Resource::RLIMIT_NOFILE).map_or(USUAL, |(soft, _)| soft);
    usize::try_from(soft).unwrap_or(usize::MAX)
}

/// How many connections each listener holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Shares {
    /// The public listener, those for instances among them where it carries `/internal/*`.
    pub(crate) public: usize,
    /// Those of `public` that clients may keep busy.
    pub(crate) clients: usize,
    pub(crate) internal: usize,
    pub(crate) scrapers: usize,
    /// The listener for the app that the instance started, its only client there.
    pub(crate) child: usize,
}

impl Shares {
    /// Half is for the public listener, a quarter each for the one for instances and for what the process opens itself:
    /// connections to peers, to DNS and of its app, the log, the listeners. Nor do connections take more than a quarter of
    /// `memory`.
    pub(crate) fn of(files: usize, memory: usize) -> Self {
        let bound = (memory / 4 / EACH).max(1);
        let share = |part: usize, most: usize| (files / part).min(bound).clamp(1, most);
        let public = share(2, MOST);
        Self {
            public,
            clients: (public - public / 8).max(1),
            internal: share(4, MOST),
            scrapers: share(16, MOST_SCRAPERS),
            child: share(8, MOST / 2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn something_is_left_for_what_the_process_opens_itself() {
        for files in [64, 128, 1024, 1 << 20] {
            let Shares {
                public,
                clients,
                internal,
                scrapers,
                child,
            } = Shares::of(files, 1 << 40);
            let for_others = public + internal + scrapers;
            assert!(for_others <= files - files / 8, "{files}");
            assert!(for_others + child <= files - files / 16, "{files}");
            assert!(clients < public && scrapers > 0, "{files}");
        }
    }
}
