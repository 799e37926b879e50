//! How many attempts may follow failed ones: without a limit, three attempts for each call would triple the load on a
//! region at the moment when it can bear it least.

use std::{sync::Arc, time::Duration};

use moka::sync::Cache;
use tower::retry::budget::{Budget, TpsBudget};

use crate::region::Region;

/// How long a call counts.
const WINDOW: Duration = Duration::from_secs(10);
/// Further attempts that are always allowed, for each second.
const ALWAYS: u32 = 3;
/// Further attempts for each call.
const SHARE: f32 = 0.2;
/// How many regions have a budget of their own.
const REGIONS: u64 = 1024;

/// A budget for each region, so that a dead one does not use up what another needs.
#[derive(Debug)]
pub(super) struct Budgets(Cache<Region, Arc<TpsBudget>>);

impl Budgets {
    /// Full budgets.
    pub(super) fn new() -> Self {
        Self(Cache::new(REGIONS))
    }

    /// The budget of `region`, to which one call was added.
    pub(super) fn of_call(&self, region: &Region) -> Arc<TpsBudget> {
        let budget = self.0.get(region).unwrap_or_else(|| {
            self.0
                .get_with_by_ref(region, || Arc::new(TpsBudget::new(WINDOW, ALWAYS, SHARE)))
        });
        budget.deposit();
        budget
    }
}
