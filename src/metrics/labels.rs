//! The labels. A call's region is `target_region`, not `region`: Fly's scraper overwrites a label of that name with the
//! region of the instance that it asks (<https://fly.io/docs/monitoring/metrics/>).

use std::fmt::{Error, Write};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

use crate::{
    config::Identity,
    name::FunctionName,
    problem::{Code, Problem},
    region::Region,
};

/// What stands for everything that is not known here.
const OTHER: &str = "other";

/// What runs here, and where.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(super) struct Build {
    version: &'static str,
    release: String,
    local_region: String,
}

impl Build {
    pub(super) fn of(identity: &Identity) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            release: identity.release.clone().unwrap_or_default(),
            local_region: identity.region.to_string(),
        }
    }
}

/// What came of a call: `ok`, or a problem's code; and whether the function ran.
#[derive(Clone, Copy, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(super) struct Outcome {
    code: &'static str,
    executed: &'static str,
}

impl Outcome {
    /// What came of a call that ended with `problem`, or well.
    pub(super) fn of(problem: Option<&Problem>) -> Self {
        match problem {
            None => Self {
                code: "ok",
                executed: "yes",
            },
            Some(problem) => Self {
                code: problem.code.as_str(),
                executed: problem.executed.as_str(),
            },
        }
    }
}

/// The region that a call is for; `None` where no instance was ever seen in it.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(super) struct Target {
    target_region: Known<Region>,
}

impl Target {
    pub(super) fn new(region: Option<&Region>) -> Self {
        Self {
            target_region: Known(region.cloned()),
        }
    }
}

/// The item of a list of regions that answered.
#[derive(Clone, Copy, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(super) struct Item {
    item: &'static str,
}

impl Item {
    /// The item at this place, from 0.
    pub(super) fn new(place: Option<usize>) -> Self {
        let item = match place {
            None => "none",
            Some(0) => "1",
            Some(1) => "2",
            Some(_) => "3",
        };
        Self { item }
    }
}

/// A function; `None` for one that this instance has not.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(super) struct Function {
    function: Known<FunctionName>,
}

impl Function {
    pub(super) fn new(name: Option<&FunctionName>) -> Self {
        Self {
            function: Known(name.cloned()),
        }
    }
}

/// The client that calls, as the configuration names it.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(super) struct Client {
    pub(super) client: String,
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(super) struct Refusal {
    code: &'static str,
}

impl Refusal {
    pub(super) fn new(code: Code) -> Self {
        Self {
            code: code.as_str(),
        }
    }
}

/// How a probe ended.
#[derive(Clone, Copy, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(super) struct Probe {
    pub(super) outcome: &'static str,
}

/// The peers of a region in one state.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(super) struct Peers {
    pub(super) peer_region: String,
    pub(super) state: &'static str,
}

/// A label's value, or `other`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Known<T>(Option<T>);

impl<T: std::fmt::Display> EncodeLabelValue for Known<T> {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), Error> {
        match &self.0 {
            Some(value) => write!(encoder, "{value}"),
            None => encoder.write_str(OTHER),
        }
    }
}
