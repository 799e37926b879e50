//! The cluster that `dev` runs: its instances, the ways between their regions, and its DNS server.

use std::net::SocketAddr;

use futures_util::future;

use super::{
    child::{Child, Plan},
    dns::Dns,
    latency::Latency,
    way::Way,
};
use crate::{cli::Failure, region::Region};

/// A running cluster; it is gone when this is dropped.
pub(super) struct Cluster {
    pub(super) dns: Dns,
    regions: Vec<Region>,
    /// How long packets take between two regions; no time when `None`.
    latency: Option<Latency>,
    pub(super) members: Vec<Member>,
}

/// An instance, and the ways that lead to it from the other regions.
pub(super) struct Member {
    pub(super) child: Child,
    pub(super) has_ended: bool,
    ways: Vec<Way>,
}

impl Cluster {
    /// A cluster without instances.
    pub(super) fn new(dns: Dns, regions: Vec<Region>, latency: Option<Latency>) -> Self {
        Self {
            dns,
            regions,
            latency,
            members: Vec::new(),
        }
    }

    /// Starts the instance of `plan`, and announces it in every region.
    pub(super) async fn add(&mut self, plan: Plan) -> Result<(), Failure> {
        let (region, name, listen) = (plan.region.clone(), plan.name.clone(), plan.listen);
        let mut ways = Vec::new();
        // Announced before it starts where its port is known, so that its first question already has an answer.
        if listen.port() != 0 {
            ways = self.announce(&region, &name, listen).await?;
        }
        let child = Child::start(plan).await?;
        if listen.port() == 0 {
            ways = self.announce(&region, &name, child.plan.listen).await?;
        }
        self.members.push(Member {
            child,
            has_ended: false,
            ways,
        });
        Ok(())
    }

    pub(super) fn children(&self) -> impl Iterator<Item = &Child> {
        self.members.iter().map(|member| &member.child)
    }

    /// Stops every instance in order.
    pub(super) async fn stop(&mut self) {
        let members = self.members.iter_mut();
        future::join_all(members.map(|member| member.child.stop())).await;
    }

    /// Notes that the instance `name` has ended: no way leads to it any more. Whether any is left.
    pub(super) fn ended(&mut self, name: &str) -> bool {
        if let Ok(member) = self.member(name) {
            member.has_ended = true;
            member.ways.iter_mut().for_each(Way::close);
        }
        self.members.iter().any(|member| !member.has_ended)
    }

    /// Starts the instance `name` again, which must have ended.
    pub(super) async fn start_again(&mut self, name: &str) -> Result<(), Failure> {
        let member = self.member(name)?;
        if !member.has_ended {
            return Err(Failure::Failed(format!("{name} has not ended")));
        }
        member.child.start_again().await?;
        member.has_ended = false;
        for way in &mut member.ways {
            way.reopen().await?;
        }
        Ok(())
    }

    pub(super) fn child(&mut self, name: &str) -> Result<&mut Child, Failure> {
        self.member(name).map(|member| &mut member.child)
    }

    fn member(&mut self, name: &str) -> Result<&mut Member, Failure> {
        let names: Vec<_> = self.children().map(|child| &*child.plan.name).collect();
        let unknown = format!("{name} is none of {}", names.join(", "));
        let mut members = self.members.iter_mut();
        let found = members.find(|member| member.child.plan.name == name);
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
