//! Run a named function in a chosen region.

mod call;
mod config;
mod deadline;
mod json;
mod name;
mod problem;
mod region;
mod reply;
