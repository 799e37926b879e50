//! One call, from the request to its end: answers, refusals, `executed`, keys, what is bounded.

mod answers;
mod bad_bodies;
mod bad_heads;
mod blocking;
mod by_path;
mod connections;
mod each;
mod executed;
mod hanging;
mod idempotency;
mod key_store;
mod keys;
mod memory_bound;
mod respond_async;
mod results;
mod slow;
