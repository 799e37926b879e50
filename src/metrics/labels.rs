//! The labels. A call's region is `target_region`, not `region`: Fly's scraper overwrites a label of that name with the
//! region of the instance that it asks (<https://fly.io/docs/monitoring/metrics/>).

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
pub(super) fn target(region: Option<&Region>) -> Texts<1> {
    [("target_region", known(region))]
}

/// A function; `None` for one that this instance does not have.
pub(super) fn function(name: Option<&FunctionName>) -> Texts<1> {
    [("function", known(name))]
}

fn known(value: Option<&impl ToString>) -> String {
    value.map_or_else(|| OTHER.to_owned(), ToString::to_string)
}
