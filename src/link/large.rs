//! What is too large to travel with others: it would hold them up.

use std::sync::atomic::{AtomicBool, Ordering};

use moka::sync::Cache;

use crate::name::FunctionName;

/// The size, in bytes, above which a call, or a function's result, travels alone.
pub(super) const LARGE: usize = 64 << 10;
/// How many functions with large results are remembered.
const FUNCTIONS: u64 = 1024;

/// The functions whose last result was large: their calls travel alone, so that their results hold up no others. The
/// next result that is small ends it.
#[derive(Debug)]
pub(super) struct LargeResults {
    names: Cache<FunctionName, ()>,
    /// Spares the look into the cache as long as there was none.
    is_any: AtomicBool,
}

impl LargeResults {
    /// None so far.
    pub(super) fn new() -> Self {
        Self {
            names: Cache::new(FUNCTIONS),
            is_any: AtomicBool::new(false),
        }
    }

    /// Whether the function's last result was large.
    pub(super) fn are_usual_for(&self, name: &FunctionName) -> bool {
        self.is_any.load(Ordering::Relaxed) && self.names.contains_key(name)
    }

    /// Notes the size of a function's result, in bytes.
    pub(super) fn note(&self, name: &FunctionName, size: usize) {
        if size > LARGE {
            self.is_any.store(true, Ordering::Relaxed);
            self.names.insert(name.clone(), ());
        } else if self.are_usual_for(name) {
            self.names.invalidate(name);
        }
    }
}
