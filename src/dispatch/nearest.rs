//! Which known function a call for an unknown one may have meant. Only a call that failed so costs anything, and little: the
//! catalogues of one region's first instances are compared.

use std::sync::Arc;

use super::{Dispatcher, Report};
use crate::{
    name::{FunctionName, Name},
    problem::Code,
    protocol::Catalogue,
};

/// In how many characters two names differ at most that are much like each other.
const TYPED_WRONGLY: usize = 2;
/// How many functions are compared.
const MOST: usize = 1000;
/// The most bytes of a name that is compared: what it costs grows with the product of two lengths.
const LONGEST: usize = 64;

impl Dispatcher {
    /// Adds to a `report` that no instance has the function `name` the one that may be meant, if there is one. Only for a
    /// caller that may know every function.
    pub(crate) fn add_nearest(&self, name: &FunctionName, report: &mut Report) {
        let Err(problem) = &mut report.result else {
            return;
        };
        if problem.code != Code::FunctionUnknown {
            return;
        }
        let own = &self.local.identity.region;
        let region = report.meta.region.as_ref().unwrap_or(own);
        let here = (region == own).then(|| self.executor.catalogue());
        let peers = self.cluster.region(region).unwrap_or_default();
        // Another instance may have it, as during a deploy.
        if peers.all().any(|peer| peer.says_it_has(name)) {
            return;
        }
        let there = peers.all().find_map(|peer| peer.catalogue.clone());
        let catalogues: Vec<Arc<Catalogue>> = here.into_iter().chain(there).collect();
        let known = catalogues.iter().flat_map(|catalogue| catalogue.iter());
        let known = known.map(|(function, _)| function).take(MOST);
        if let Some(nearest) = nearest(name, known) {
            problem.add(&format!("; did you mean {nearest}?"));
        }
    }
}

/// Of the `known` functions the one whose name is most like `asked`; `None` where none is much like it, or `asked` itself is
/// known: the instance that was asked lacks it, and another has it.
fn nearest<'a>(
    asked: &FunctionName,
    known: impl Iterator<Item = &'a FunctionName>,
) -> Option<&'a FunctionName> {
    let alike = known.filter_map(|known| Some((difference(asked, known)?, known)));
    let (_, nearest) = alike.min_by_key(|(difference, known)| (*difference, *known != asked))?;
    (nearest != asked).then_some(nearest)
}

/// In how many characters two names differ of which one may be meant by the other; the case of letters does not count.
fn difference(asked: &FunctionName, known: &FunctionName) -> Option<usize> {
    let is_same = |asked: &Name, known: &Name| asked.as_str().eq_ignore_ascii_case(known.as_str());
    let (asked, known) = match (
        is_same(&asked.module, &known.module),
        is_same(&asked.function, &known.function),
    ) {
        (true, _) => (&asked.function, &known.function),
        (false, true) => (&asked.module, &known.module),
        (false, false) => return None,
    };
    let (asked, known) = (asked.as_str(), known.as_str());
    if asked.len() > LONGEST || asked.len().abs_diff(known.len()) > TYPED_WRONGLY {
        return None;
    }
    let difference = strsim::osa_distance(&asked.to_lowercase(), &known.to_lowercase());
    // Not all of it is another.
    (difference <= TYPED_WRONGLY && difference < asked.len()).then_some(difference)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_mistyped_is_known_again_and_another_is_not() {
        let name = |text: &str| FunctionName::of(text).unwrap();
        let known = [
            "Kernel.+",
            "Math.add",
            "Math.and",
            "Notes.create",
            "Other.add",
        ]
        .map(name);
        for (asked, meant) in [
            ("Math.ad", Some("Math.add")),
            ("Math.dad", Some("Math.add")),
            ("math.AND", Some("Math.and")),
            ("Maths.add", Some("Math.add")),
            ("Notes.craete", Some("Notes.create")),
            ("Math.add", None),
            ("Notes.update", None),
            ("Kernel.-", None),
            ("Maths.ad", None),
            ("Note.created", None),
        ] {
            let nearest = nearest(&name(asked), known.iter());
            assert_eq!(
                nearest.map(ToString::to_string).as_deref(),
                meant,
                "{asked}"
            );
        }
    }
}
