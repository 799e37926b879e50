//! Many instances: who is found, suspected, removed; what callers lose when some fail.

mod chaos;
mod discovery;
mod dns_answers;
mod failover;
mod hostile_discovery;
mod lists;
mod outages;
mod proof;
mod releases;
mod rotation;
mod silence;
mod six_pn;
