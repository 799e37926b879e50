//! The labels. A call's region is `target_region`, not `region`: Fly's scraper overwrites a label of that name with the
//! region of the instance that it asks (<https://fly.io/docs/monitoring/metrics/>).

use std::fmt::{Error, Write};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

use crate::{
    name::FunctionName,
    problem::{Executed, Problem},
    region::Region,
};

/// What stands for everything that is not known here.
const OTHER: &str = "other";

/// Labels by name, whose values are a few words.
pub(super) type Words<const N: usize> = [(&'static str, &'static str); N];
/// Labels by name.
pub(crate) type Texts<const N: usize> = [(&'static str, String); N];

/// What came of a call: `ok`, or the code of `problem`; and whether the function ran.
pub(super) fn outcome(problem: Option<&Problem>) -> Words<2> {
    let ok = ("ok", Executed::Yes);
    let (code, executed) = problem.map_or(ok, |problem| (problem.code.as_str(), problem.executed));
    [("code", code), ("executed", executed.as_str())]
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

/// A function; `None` for one that this instance does not have.
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
