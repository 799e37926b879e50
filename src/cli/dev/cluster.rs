//! The cluster that `dev` runs: its instances, the ways between their regions, and its DNS server.

use std::{io, net::SocketAddr, time::Duration};

use futures_util::future;
use nix::sys::signal::Signal;

use super::{
    chaos::Command,
    child::{Child, Plan},
    control::InstanceStatus,
    dns::Dns,
    latency::Latency,
    way::Way,
};
use crate::{cli::Failure, region::Region};

/// A running cluster; it is gone when this is dropped.
pub(super) struct Cluster {
    dns: Dns,
    regions: Vec<Region>,
    latency: Option<Latency>,
    members: Vec<Member>,
}

/// An instance, and the ways that lead to it.
struct Member {
    child: Child,
    has_ended: bool,
    approaches: Vec<Approach>,
}

/// The way to an instance from one other region; none while the instance is gone, so that it cannot be connected to.
struct Approach {
    start: SocketAddr,
    delay: Duration,
    way: Option<Way>,
}

impl Cluster {
    /// A cluster without instances, in `regions`, between which packets take as long as `latency` says.
    pub(super) fn new(dns: Dns, regions: Vec<Region>, latency: Option<Latency>) -> Self {
        Self {
            dns,
            regions,
            latency,
            members: Vec::new(),
        }
    }

    /// Starts the instance of `plan`, and lets every region know it.
    pub(super) async fn add(&mut self, plan: Plan) -> Result<(), Failure> {
        let (region, name, listen) = (plan.region.clone(), plan.name.clone(), plan.listen);
        let mut approaches = Vec::new();
        // Announced before it starts where its port is known, so that its first question already has an answer.
        if listen.port() != 0 {
            approaches = self.announce(&region, &name, listen).await?;
        }
        let child = Child::start(plan).await?;
        if listen.port() == 0 {
            approaches = self.announce(&region, &name, child.address()).await?;
        }
        self.members.push(Member {
            child,
            has_ended: false,
            approaches,
        });
        Ok(())
    }

    /// The instances as the page shows them.
    pub(super) fn statuses(&self) -> Vec<InstanceStatus> {
        let status = |member: &Member| InstanceStatus {
            name: member.child.name().to_owned(),
            has_ended: member.has_ended,
        };
        self.members.iter().map(status).collect()
    }

    /// Where its DNS server answers.
    pub(super) fn dns_server(&self) -> SocketAddr {
        self.dns.address()
    }

    /// The instances.
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
        for member in &mut self.members {
            if member.child.name() == name {
                member.has_ended = true;
                let approaches = member.approaches.iter_mut();
                approaches.for_each(|approach| approach.way = None);
            }
        }
        self.members.iter().any(|member| !member.has_ended)
    }

    /// Does what is asked, and says what was done.
    pub(super) async fn obey(&mut self, command: Command) -> Result<String, Failure> {
        match command {
            Command::Kill(name) => {
                self.member(&name)?.child.signal(Signal::SIGKILL).await;
                Ok(format!("{name} is killed; `start {name}` starts it again"))
            }
            Command::Stop(name) => {
                self.member(&name)?.child.signal(Signal::SIGSTOP).await;
                Ok(format!("{name} hangs; `resume {name}` lets it go on"))
            }
            Command::Resume(name) => {
                self.member(&name)?.child.signal(Signal::SIGCONT).await;
                Ok(format!("{name} goes on"))
            }
            Command::Drain(name) => {
                self.member(&name)?.child.drain();
                Ok(format!("{name} drains; `start {name}` starts it again"))
            }
            Command::Start(name) => {
                self.member(&name)?.start_again().await?;
                Ok(format!("{name} is back"))
            }
            Command::DnsDown => {
                self.dns.take_down();
                Ok("DNS is down; `dns up` brings it up again".to_owned())
            }
            Command::DnsUp => {
                self.dns.bring_up().await?;
                Ok("DNS is up".to_owned())
            }
        }
    }

    fn member(&mut self, name: &str) -> Result<&mut Member, Failure> {
        let names: Vec<_> = self.children().map(Child::name).collect();
        let unknown = format!("{name} is none of {}", names.join(", "));
        let mut members = self.members.iter_mut();
        let found = members.find(|member| member.child.name() == name);
        found.ok_or(Failure::Failed(unknown))
    }

    /// Tells every region where the instance `name` at `address` is, and opens the ways to it.
    async fn announce(
        &self,
        region: &Region,
        name: &str,
        address: SocketAddr,
    ) -> Result<Vec<Approach>, Failure> {
        let mut approaches = Vec::new();
        for viewer in &self.regions {
            let latency = self.latency.filter(|_| viewer != region);
            let Some(latency) = latency else {
                self.dns.announce(viewer, name, address.port()).await?;
                continue;
            };
            let delay = latency.between(viewer, region).map_err(Failure::Usage)?;
            let anywhere = SocketAddr::new(address.ip(), 0);
            let way = Way::open(anywhere, address, delay).await?;
            self.dns
                .announce(viewer, name, way.address().port())
                .await?;
            approaches.push(Approach {
                start: way.address(),
                delay,
                way: Some(way),
            });
        }
        Ok(approaches)
    }
}

impl Member {
    async fn start_again(&mut self) -> Result<(), Failure> {
        if !self.has_ended {
            let name = self.child.name();
            return Err(Failure::Failed(format!("{name} has not ended")));
        }
        self.child.start_again().await?;
        self.has_ended = false;
        let target = self.child.address();
        for approach in &mut self.approaches {
            approach.open(target).await?;
        }
        Ok(())
    }
}

impl Approach {
    async fn open(&mut self, target: SocketAddr) -> io::Result<()> {
        self.way = Some(Way::open(self.start, target, self.delay).await?);
        Ok(())
    }
}
