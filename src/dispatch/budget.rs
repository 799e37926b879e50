//! How many attempts may follow failed ones: without a limit, three attempts for each call would triple the load on a
//! region when it has the least room for it.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tower::retry::budget::{Budget, TpsBudget};

use crate::region::Region;

/// How long a call counts.
const WINDOW: Duration = Duration::from_secs(10);
/// Further attempts that are always allowed, for each second.
const ALWAYS: u32 = 3;
/// Further attempts for each call.
const SHARE: f32 = 0.2;
/// A budget for each region, so that a dead one does not use up what another needs. Only regions in which an instance
/// was seen have one.
#[derive(Debug, Default)]
pub(super) struct Budgets(RwLock<HashMap<Region, Arc<TpsBudget>>>);

impl Budgets {
    /// The budget of `region`, to which one call was added.
    pub(super) fn of_call(&self, region: &Region) -> Arc<TpsBudget> {
        let budget = self.known(region).unwrap_or_else(|| self.new_one(region));
        budget.deposit();
        budget
    }

    fn known(&self, region: &Region) -> Option<Arc<TpsBudget>> {
        let budgets = self.0.read().unwrap_or_else(PoisonError::into_inner);
        budgets.get(region).cloned()
    }

    fn new_one(&self, region: &Region) -> Arc<TpsBudget> {
        let full = || Arc::new(TpsBudget::new(WINDOW, ALWAYS, SHARE));
        let mut budgets = self.0.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(budgets.entry(region.clone()).or_insert_with(full))
    }
}
