//! The cluster that `dev` runs: its shape as it is typed, its instances, the ways between their regions, and its DNS server.

use std::{net::SocketAddr, str::FromStr};

use futures_util::future;

use super::{
    child::{Child, Plan},
    dns::Dns,
    way::{Latency, Way},
};
use crate::{cli::Failure, region::Region};

/// The most instances of one cluster on one machine.
const MAX_INSTANCES: usize = 64;

/// Regions in the order given, each with its number of instances.
#[derive(Clone, Debug)]
pub(super) struct Shape(Vec<(Region, usize)>);

impl Shape {
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

/// A running cluster; it is gone when this is dropped.
pub(super) struct Cluster {
    pub(super) dns: Dns,
    pub(super) children: Vec<Child>,
    pub(super) regions: Vec<Region>,
    /// How long packets take between two regions; no time when `None`.
    pub(super) latency: Option<Latency>,
}

impl Cluster {
    /// Starts the instance of `plan`, and announces it in every region.
    pub(super) async fn add(&mut self, plan: Plan) -> Result<(), Failure> {
        let (region, name, listen) = (plan.region.clone(), plan.name.clone(), plan.listen);
        let mut ways = Vec::new();
        // Announced before it starts where its port is known, so that its first question already has an answer.
        if listen.port() != 0 {
            ways = self.announce(&region, &name, listen).await?;
        }
        let mut child = Child::start(plan).await?;
        if listen.port() == 0 {
            ways = self.announce(&region, &name, child.plan.listen).await?;
        }
        child.ways = ways;
        self.children.push(child);
        Ok(())
    }

    pub(super) async fn stop(&mut self) {
        future::join_all(self.children.iter_mut().map(Child::stop)).await;
    }

    /// Notes that the instance `name` has ended: no way leads to it any more. Whether any is left.
    pub(super) fn ended(&mut self, name: &str) -> bool {
        if let Ok(child) = self.child(name) {
            child.has_ended = true;
            child.ways.iter_mut().for_each(Way::close);
        }
        self.children.iter().any(|child| !child.has_ended)
    }

    pub(super) fn child(&mut self, name: &str) -> Result<&mut Child, Failure> {
        let names: Vec<_> = self.children.iter().map(|it| &*it.plan.name).collect();
        let unknown = format!("{name} is none of {}", names.join(", "));
        let found = self.children.iter_mut().find(|it| it.plan.name == name);
        found.ok_or(Failure::Failed(unknown))
    }

    /// Announces the instance `name` at `address` in every region, and opens the ways to it.
    async fn announce(
        &self,
        region: &Region,
        name: &str,
        address: SocketAddr,
    ) -> Result<Vec<Way>, Failure> {
        let mut ways = Vec::new();
        for viewer in &self.regions {
            let mut reached_at = address;
            if let Some(latency) = self.latency.filter(|_| viewer != region) {
                let delay = latency.between(viewer, region).map_err(Failure::Usage)?;
                let way = Way::open(address, delay).await?;
                reached_at = way.start;
                ways.push(way);
            }
            self.dns.announce(viewer, name, reached_at.port()).await?;
        }
        Ok(ways)
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
