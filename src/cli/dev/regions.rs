//! The shape of a cluster as it is typed: regions, each with its number of instances.

use std::str::FromStr;

use crate::region::Region;

/// The most instances of one cluster on one machine.
const MAX_INSTANCES: usize = 64;

/// Regions in the order given, each with its number of instances.
#[derive(Clone, Debug)]
pub(super) struct Shape(Vec<(Region, usize)>);

impl Shape {
    /// The regions.
    pub(super) fn regions(&self) -> impl Iterator<Item = &Region> {
        self.0.iter().map(|(region, _)| region)
    }

    /// Every instance: its region and its name.
    pub(super) fn instances(&self) -> impl Iterator<Item = (&Region, String)> {
        self.0.iter().flat_map(|(region, count)| {
            (1..=*count).map(move |number| (region, format!("{region}-{number}")))
        })
    }
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut shape: Vec<(Region, usize)> = Vec::new();
        for part in text.split(',') {
            let (region, count) = part.split_once(':').unwrap_or((part, "1"));
            let region: Region = region
                .parse()
                .map_err(|invalid| format!("{region:?}: {invalid}"))?;
            let count = count
                .parse()
                .ok()
                .filter(|count| (1..=MAX_INSTANCES).contains(count));
            let count = count.ok_or_else(|| {
                format!("{part:?} needs a count from 1 to {MAX_INSTANCES}, as in syd:2")
            })?;
            if shape.iter().any(|(known, _)| *known == region) {
                return Err(format!(
                    "{region} is given twice; write {region}:2 for two instances"
                ));
            }
            shape.push((region, count));
        }
        match shape.iter().map(|(_, count)| count).sum::<usize>() {
            1..=MAX_INSTANCES => Ok(Self(shape)),
            count => Err(format!("{count} instances are more than {MAX_INSTANCES}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_read_in_order() {
        let shape: Shape = "syd:2,iad".parse().unwrap();
        let names: Vec<_> = shape.instances().map(|(_, name)| name).collect();
        assert_eq!(names.join(" "), "syd-1 syd-2 iad-1");
        for bad in [
            "",
            "IAD",
            "iad:0",
            "iad:x",
            "iad,iad",
            "iad:65",
            "iad:40,syd:40",
        ] {
            bad.parse::<Shape>().unwrap_err();
        }
    }
}
