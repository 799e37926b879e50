//! The HTTP surface beside calls: what is read, documented, allowed, and what stands in front.

mod events;
mod examples;
mod explain;
mod openapi;
mod places;
mod proxies;
mod reading;
mod security;
mod typed;
