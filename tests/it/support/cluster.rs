//! A cluster of real instances, all on one port of 127.x.y.n, found through a DNS server of the test.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, SocketAddr},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{
    dns::DnsServer,
    fault::FaultProxy,
    functions::{self, touch},
    network::Network,
    patience::{eventually, in_time},
    process::{Environment, Process},
};

/// The name that instances resolve.
pub(crate) const NAME: &str = "cluster.test";

/// A running cluster.
pub(crate) struct Cluster {
    pub dns: DnsServer,
    pub instances: Vec<Process>,
    proxies: BTreeMap<String, FaultProxy>,
    directory: TempDir,
    network: Network,
    settings: Environment,
    functions: bool,
    proxied: bool,
}

/// What a cluster is made of.
#[derive(Default)]
pub(crate) struct Builder {
    regions: Vec<(&'static str, usize)>,
    settings: Environment,
    functions: bool,
    proxied: bool,
}

impl Builder {
    /// Adds `count` instances in `region`; the first region is the primary.
    pub(crate) fn region(mut self, region: &'static str, count: usize) -> Self {
        self.regions.push((region, count));
        self
    }

    /// Sets a variable of every instance.
    pub(crate) fn set(mut self, variable: &'static str, value: &str) -> Self {
        self.settings.insert(variable, value.to_owned());
        self
    }

    /// Gives every instance the functions of [`crate::support::functions`].
    pub(crate) fn functions(mut self) -> Self {
        self.functions = true;
        self
    }

    /// Puts a [`FaultProxy`] in front of every instance.
    pub(crate) fn proxied(mut self) -> Self {
        self.proxied = true;
        self
    }

    /// Starts the cluster, once every instance sees every other.
    pub(crate) async fn start(self) -> Cluster {
        let mut settings = Environment::from([
            ("RPC_DNS_NAME", NAME.to_owned()),
            ("RPC_POLL_INTERVAL", "100ms".to_owned()),
            ("RPC_DRAIN_DELAY", "0s".to_owned()),
        ]);
        settings.extend(self.settings);
        if let Some((primary, _)) = self.regions.first() {
            settings
                .entry("PRIMARY_REGION")
                .or_insert((*primary).to_owned());
        }
        let mut cluster = Cluster {
            dns: DnsServer::start().await,
            instances: Vec::new(),
            proxies: BTreeMap::new(),
            directory: TempDir::new().unwrap(),
            network: Network::free(),
            settings,
            functions: self.functions,
            proxied: self.proxied,
        };
        for (region, count) in self.regions {
            for _ in 0..count {
                cluster.add(region).await;
            }
        }
        cluster.announce_all();
        cluster.until_all_see_all().await;
        for instance in &cluster.instances {
            let status = async || instance.get("/readyz").await.status;
            eventually("ready", status, |status| *status == 200).await;
            // Where DNS knows the name from the beginning.
            if cluster.settings["RPC_DNS_NAME"] == NAME {
                until_all_probed(instance).await;
            }
        }
        cluster
    }
}

impl Cluster {
    /// A cluster to be described.
    pub(crate) fn builder() -> Builder {
        Builder::default()
    }

    /// Starts one more instance in `region`; DNS does not know it yet.
    pub(crate) async fn add(&mut self, region: &str) {
        let environment = self.next_environment(region);
        self.start(environment).await;
    }

    /// The same with `variable` set to `value` for this instance.
    pub(crate) async fn add_with(&mut self, region: &str, variable: &'static str, value: &str) {
        self.add_with_all(region, &[(variable, value)]).await;
    }

    /// The same with several settings.
    pub(crate) async fn add_with_all(&mut self, region: &str, more: &[(&'static str, &str)]) {
        let mut environment = self.next_environment(region);
        let more = more
            .iter()
            .map(|(variable, value)| (*variable, (*value).to_owned()));
        environment.extend(more);
        self.start(environment).await;
    }

    /// Starts one more instance in `region`, which probes nobody by itself before the test is over, once it sees `all` as
    /// ready, itself included. Its one round may be over before a busy machine has answered it: then it is started again.
    pub(crate) async fn add_with_one_round(&mut self, region: &str, all: &[&str]) {
        let all: BTreeSet<String> = all.iter().map(|name| (*name).to_owned()).collect();
        let mut environment = self.next_environment(region);
        environment.insert("RPC_POLL_INTERVAL", "1h".to_owned());
        let found = in_time("all in one round", async {
            loop {
                let mut instance = self.process(&environment).await;
                until_all_probed(&instance).await;
                if ready_instances(&instance).await == all {
                    return instance;
                }
                instance.kill();
                instance.ended().await;
            }
        });
        let instance = found.await;
        self.instances.push(instance);
    }

    /// The same without the functions of [`crate::support::functions`], as an older release would be.
    pub(crate) async fn add_without_functions(&mut self, region: &str) {
        let environment = self.next_environment(region);
        let instance = Process::start(&environment).await;
        self.instances.push(instance);
    }

    fn next_environment(&mut self, region: &str) -> Environment {
        let number = self
            .instances
            .iter()
            .filter(|instance| instance.region == region)
            .count()
            + 1;
        let address = self.network.next_address();
        self.environment(region, &format!("{region}-{number}"), address)
    }

    async fn start(&mut self, environment: Environment) {
        let instance = self.process(&environment).await;
        if self.proxied {
            let address = self.network.next_address();
            let proxy = FaultProxy::start(address, instance.address).await;
            self.proxies.insert(instance.name.clone(), proxy);
        }
        self.instances.push(instance);
    }

    async fn process(&self, environment: &Environment) -> Process {
        match self.functions {
            true => Process::start_with_functions(environment, self.directory.path()).await,
            false => Process::start(environment).await,
        }
    }

    /// Starts the instance `name` again at the same address, once it has ended.
    pub(crate) async fn restart(&mut self, name: &str) {
        self.instance_mut(name).ended().await;
        let again = self.process(&self.instance(name).environment).await;
        *self.instance_mut(name) = again;
    }

    /// What an instance `name` at `address` is given.
    pub(crate) fn environment(&self, region: &str, name: &str, address: SocketAddr) -> Environment {
        let mut environment = self.settings.clone();
        environment.insert("FLY_REGION", region.to_owned());
        environment.insert("FLY_MACHINE_ID", name.to_owned());
        environment.insert("RPC_LISTEN", address.to_string());
        environment.insert("RPC_DNS_SERVER", self.dns.address().to_string());
        environment
    }

    /// An address of the cluster's network at which nothing runs.
    pub(crate) fn free_address(&mut self) -> SocketAddr {
        self.network.next_address()
    }

    /// The instance `name`, such as `syd-1`.
    pub(crate) fn instance(&self, name: &str) -> &Process {
        self.instances
            .iter()
            .find(|instance| instance.name == name)
            .unwrap()
    }

    /// The same, to wait for its end.
    pub(crate) fn instance_mut(&mut self, name: &str) -> &mut Process {
        self.instances
            .iter_mut()
            .find(|instance| instance.name == name)
            .unwrap()
    }

    /// The proxy in front of the instance `name`.
    pub(crate) fn proxy(&self, name: &str) -> &FaultProxy {
        &self.proxies[name]
    }

    /// The addresses that DNS announces: those of the instances, or of the proxies in front of them.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        let announced = |instance: &Process| match self.proxies.get(&instance.name) {
            Some(proxy) => proxy.address.ip(),
            None => instance.address.ip(),
        };
        self.instances.iter().map(announced).collect()
    }

    /// Lets DNS know every instance.
    pub(crate) fn announce_all(&self) {
        self.dns.set_addresses(NAME, self.addresses());
    }

    /// Waits until every instance sees every other as ready.
    pub(crate) async fn until_all_see_all(&self) {
        let all: BTreeSet<String> = self
            .instances
            .iter()
            .map(|instance| instance.name.clone())
            .collect();
        for instance in &self.instances {
            eventually(
                "seeing every instance",
                async || ready_instances(instance).await,
                |seen| *seen == all,
            )
            .await;
        }
    }

    /// Waits until the instance `name` sees `instances` as ready, itself included, and no other.
    pub(crate) async fn until_ready(&self, name: &str, instances: &[&str]) {
        let wanted: BTreeSet<String> = instances.iter().map(|name| (*name).to_owned()).collect();
        let seen = async || ready_instances(self.instance(name)).await;
        eventually("seeing these instances", seen, |seen| *seen == wanted).await;
    }

    /// Waits until `name` knows that one instance of `syd` alone has `Test.run`: functions are read after the instance is seen.
    pub(crate) async fn until_one_is_chosen(&self, name: &str) {
        let path = "/regions/syd/explain?function=Test.run";
        let explained = async || self.instance(name).get(path).await.body;
        eventually("their functions", explained, |explained| {
            let candidates = explained["candidates"].as_array().unwrap();
            let chosen = candidates.iter().filter(|one| one["chosen"] == true);
            chosen.count() == 1
        })
        .await;
    }

    /// Lets a `Test.block(name)` return.
    pub(crate) fn release(&self, name: &str) {
        touch(self.directory.path(), &format!("{name}.released"));
    }

    /// Lets no further function pass the latch `name`.
    pub(crate) fn hold(&self, name: &str) {
        fs::remove_file(self.directory.path().join(format!("{name}.released"))).unwrap();
    }

    /// Waits until a function of the test left the mark `name`, such as `x.started`.
    pub(crate) async fn until_marked(&self, name: &str) {
        eventually(name, async || self.is_marked(name), |marked| *marked).await;
    }

    /// Waits until a `Test.block(name)` has started, and returns on which instance.
    pub(crate) async fn until_started(&self, name: &str) -> String {
        let starts = async || self.starts(name);
        let mut starts = eventually(name, starts, |starts| !starts.is_empty()).await;
        starts.remove(0)
    }

    /// The instances on which `Test.block(name)` started, once for each time.
    pub(crate) fn starts(&self, name: &str) -> Vec<String> {
        let log = self.directory.path().join(format!("{name}.started"));
        // None did as long as there is no log.
        let log = fs::read_to_string(log).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// How often `Test.run` ran, by id.
    pub(crate) fn runs(&self) -> BTreeMap<String, u32> {
        functions::runs(self.directory.path())
    }

    /// Whether a function of the test left the mark `name`.
    pub(crate) fn is_marked(&self, name: &str) -> bool {
        self.directory.path().join(name).exists()
    }
}

/// Waits until `instance` has probed every address of a whole DNS answer: only then is a region known to be none, and a call
/// with a key for the own region not refused where no other instance is in it.
async fn until_all_probed(instance: &Process) {
    let region = async || instance.get("/regions/none").await.status;
    eventually("the end of the round", region, |status| *status == 404).await;
}

/// The instances that `instance` sees as ready, itself included.
pub(crate) async fn ready_instances(instance: &Process) -> BTreeSet<String> {
    instances_in_state(instance, "ready").await
}

/// How many rounds of discovery `instance` has had.
pub(crate) async fn rounds(instance: &Process) -> u64 {
    let discovery = instance.get("/regions").await.body["discovery"].clone();
    discovery["rounds"].as_u64().unwrap()
}

/// The instances that `instance` knows, in whatever state, itself included.
pub(crate) async fn known_instances(instance: &Process) -> BTreeSet<String> {
    instances_where(instance, |_| true).await
}

/// The instances that `instance` sees in `state`.
pub(crate) async fn instances_in_state(instance: &Process, state: &str) -> BTreeSet<String> {
    instances_where(instance, |one| one["state"] == state).await
}

async fn instances_where(
    instance: &Process,
    is_meant: impl Fn(&Value) -> bool,
) -> BTreeSet<String> {
    let regions = instance.get("/regions").await.body;
    let instances = regions["regions"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|region| region["instances"].as_array().unwrap());
    let named = instances
        .filter(|one| is_meant(one))
        .map(|one| one["instance"].as_str());
    named.map(|name| name.unwrap().to_owned()).collect()
}
