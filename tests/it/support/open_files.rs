//! Open files: the limit of this process, and how many an instance has.

use std::fs;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::process::Process;

/// Raises the limit of open files of this process, and so of the instances that it starts; returns what it is.
pub(crate) fn raise_open_files() -> usize {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    usize::try_from(most).unwrap()
}

/// The files that an instance has open.
pub(crate) fn open_files(instance: &Process) -> usize {
    fs::read_dir(format!("/proc/{}/fd", instance.pid()))
        .unwrap()
        .count()
}
