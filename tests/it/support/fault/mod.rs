//! A proxy in front of one instance, at an address of its own that DNS announces instead, and what can go wrong there.
//! It relays bytes and knows of HTTP only how a request begins: probes and calls travel on connections of their own.

mod door;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::sleep,
};

use self::door::Door;

/// What goes wrong on the way to the instance and back, on open connections too.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Fault {
    /// Nothing.
    #[default]
    None,
    /// Nobody listens, and open connections are reset.
    Refuse,
    /// A connection never comes about; open ones stand still.
    BlackHole,
    /// Connections come about, and nothing that is sent arrives until this is over.
    Hang,
    /// What is sent arrives, and no answer comes back until this is over.
    Mute,
    /// Open connections stand still for ever, as behind a router that forgot them; new ones are well.
    Forget,
    /// A reset once so many bytes have arrived; at 0, as soon as the connection stands.
    ResetAfter(usize),
    /// A reset once so many bytes of answers came back; the request arrives whole.
    CutAnswerAfter(usize),
    /// Every piece of an answer comes so much later.
    Delay(Duration),
    /// Answers come byte by byte, with so much time between two.
    Drip(Duration),
    /// Of an answer, so many bytes come in a second.
    Narrow(usize),
    /// Of what is sent, so many bytes arrive in a second.
    NarrowThere(usize),
    /// Nothing arrives; somebody else answers this and closes.
    Answer(&'static str),
}

/// Which connections a fault is for. Nobody who listens can tell them apart before they stand, so that
/// [`Fault::Refuse`] and [`Fault::BlackHole`] are for all.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Scope {
    /// Every one.
    All,
    /// Those that begin with a GET.
    Probes,
    /// Those that begin with a POST.
    Calls,
    /// Those that begin with a POST, from the moment when they were upgraded: the lines, and not the upgrade itself. Bytes
    /// are counted from there.
    Lines,
}

type Broken = (Fault, Scope);

/// A running proxy; it stops when it is dropped.
pub(crate) struct FaultProxy {
    pub address: SocketAddr,
    orders: mpsc::Sender<(Broken, oneshot::Sender<()>)>,
    posts: Arc<AtomicUsize>,
}

impl FaultProxy {
    /// Stands at `address` in front of the instance at `instance`, without a fault.
    pub(crate) async fn start(address: SocketAddr, instance: SocketAddr) -> Self {
        let door = Door::open(address).unwrap();
        let address = door.address().unwrap();
        let (orders, received) = mpsc::channel(1);
        let (state, broken) = watch::channel((Fault::None, Scope::All));
        let posts = Arc::<AtomicUsize>::default();
        let way = Way {
            instance,
            broken,
            posts: Arc::clone(&posts),
            is_remembered: false,
            is_upgraded: Arc::default(),
        };
        tokio::spawn(keep(door, address, way, received, state));
        Self {
            address,
            orders,
            posts,
        }
    }

    /// Breaks the way like this from now on, in place of an earlier fault.
    pub(crate) async fn set(&self, fault: Fault, scope: Scope) {
        let (done, obeyed) = oneshot::channel();
        self.orders.send(((fault, scope), done)).await.unwrap();
        obeyed.await.unwrap();
    }

    /// Breaks the way for probes and calls.
    pub(crate) async fn break_all(&self, fault: Fault) {
        self.set(fault, Scope::All).await;
    }

    /// Relays again as if nothing had been.
    pub(crate) async fn heal(&self) {
        self.break_all(Fault::None).await;
    }

    /// How many POST requests were sent this way.
    pub(crate) fn posts(&self) -> usize {
        self.posts.load(Ordering::SeqCst)
    }
}

/// Keeps the door until the proxy is dropped.
async fn keep(
    mut door: Door,
    address: SocketAddr,
    way: Way,
    mut orders: mpsc::Receiver<(Broken, oneshot::Sender<()>)>,
    broken: watch::Sender<Broken>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            order = orders.recv() => {
                let Some((order, done)) = order else { return };
                door = door.turned(address, order.0).await.unwrap();
                broken.send_replace(order);
                // Whoever ordered it may have given up waiting.
                let _ = done.send(());
            }
            caller = door.accept() => { connections.spawn(way.clone().relay(caller)); }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// The way from the callers to the instance.
#[derive(Clone)]
struct Way {
    instance: SocketAddr,
    broken: watch::Receiver<Broken>,
    posts: Arc<AtomicUsize>,
    /// Whether the connection came about while others were forgotten.
    is_remembered: bool,
    is_upgraded: Arc<AtomicBool>,
}

/// How a connection ends.
enum End {
    Closed,
    Reset,
    Answered(&'static str),
}

impl Way {
    async fn relay(mut self, mut caller: TcpStream) {
        let mut broken = self.broken.clone();
        self.is_upgraded = Arc::default();
        self.is_remembered = broken.borrow().0 == Fault::Forget;
        let end = tokio::select! {
            end = self.pass(&mut caller) => end.unwrap_or(End::Reset),
            _ = broken.wait_for(|(fault, _)| *fault == Fault::Refuse) => End::Reset,
        };
        match end {
            End::Closed => {}
            // It fails on a connection that is gone already.
            End::Reset => caller.set_zero_linger().unwrap_or_default(),
            End::Answered(text) => {
                // Read to its end, because closing before that would reset the answer away.
                let _ = caller.write_all(text.as_bytes()).await;
                let _ = caller.shutdown().await;
                let _ = tokio::io::copy(&mut caller, &mut tokio::io::sink()).await;
            }
        }
    }

    async fn pass(&self, caller: &mut TcpStream) -> io::Result<End> {
        if *self.broken.borrow() == (Fault::ResetAfter(0), Scope::All) {
            return Ok(End::Reset);
        }
        caller.set_nodelay(true)?;
        let mut first = [0];
        caller.peek(&mut first).await?;
        let kind = if first == *b"P" {
            Scope::Calls
        } else {
            Scope::Probes
        };
        let mut instance = TcpStream::connect(self.instance).await?;
        instance.set_nodelay(true)?;
        let ((from_caller, to_caller), (from_instance, to_instance)) =
            (caller.split(), instance.split());
        tokio::select! {
            end = self.requests(kind, from_caller, to_instance) => end,
            end = self.answers(kind, from_instance, to_caller) => end,
        }
    }

    async fn requests(
        &self,
        kind: Scope,
        mut from: ReadHalf<'_>,
        mut to: WriteHalf<'_>,
    ) -> io::Result<End> {
        let (mut buffer, mut taken) = (vec![0; 64 << 10], 0);
        loop {
            let length = from.read(&mut buffer).await?;
            let bytes = &buffer[..length];
            if bytes.is_empty() {
                return Ok(End::Closed);
            }
            let posts = bytes
                .windows(5)
                .filter(|window| *window == b"POST ")
                .count();
            self.posts.fetch_add(posts, Ordering::SeqCst);
            let standing = |fault| matches!(fault, Fault::Hang | Fault::BlackHole | Fault::Forget);
            match self.once_not(standing, kind).await {
                Fault::ResetAfter(limit) => {
                    to.write_all(&bytes[..length.min(limit.saturating_sub(taken))])
                        .await?;
                    taken += length;
                    if taken >= limit {
                        return Ok(End::Reset);
                    }
                }
                Fault::Answer(text) => return Ok(End::Answered(text)),
                Fault::NarrowThere(rate) => trickle(bytes, rate, &mut to).await?,
                _ => to.write_all(bytes).await?,
            }
        }
    }

    async fn answers(
        &self,
        kind: Scope,
        mut from: ReadHalf<'_>,
        mut to: WriteHalf<'_>,
    ) -> io::Result<End> {
        let (mut buffer, mut passed) = (vec![0; 64 << 10], 0);
        loop {
            let length = from.read(&mut buffer).await?;
            let bytes = &buffer[..length];
            if bytes.is_empty() {
                return Ok(End::Closed);
            }
            let standing = |fault| {
                matches!(
                    fault,
                    Fault::Mute | Fault::Hang | Fault::BlackHole | Fault::Forget
                )
            };
            match self.once_not(standing, kind).await {
                Fault::CutAnswerAfter(limit) => {
                    to.write_all(&bytes[..length.min(limit.saturating_sub(passed))])
                        .await?;
                    passed += length;
                    if passed >= limit {
                        return Ok(End::Reset);
                    }
                }
                Fault::Delay(time) => {
                    sleep(time).await;
                    to.write_all(bytes).await?;
                }
                Fault::Drip(time) => {
                    for byte in bytes {
                        sleep(time).await;
                        to.write_all(&[*byte]).await?;
                    }
                }
                Fault::Narrow(rate) => trickle(bytes, rate, &mut to).await?,
                _ => to.write_all(bytes).await?,
            }
            if bytes.starts_with(b"HTTP/1.1 101 ") {
                self.is_upgraded.store(true, Ordering::SeqCst);
            }
        }
    }

    /// The fault for connections of this kind, once it is none in which they stand still.
    async fn once_not(&self, standing: impl Fn(Fault) -> bool, kind: Scope) -> Fault {
        let concerns = |scope| match scope {
            Scope::All => true,
            Scope::Lines => kind == Scope::Calls && self.is_upgraded.load(Ordering::SeqCst),
            scope => scope == kind,
        };
        let applied = |(fault, scope): &Broken| match concerns(*scope) {
            true if *fault == Fault::Forget && self.is_remembered => Fault::None,
            true => *fault,
            false => Fault::None,
        };
        let mut broken = self.broken.clone();
        let moving = broken.wait_for(|broken| !standing(applied(broken))).await;
        // Without a proxy nothing is passed on any more: this task is about to end.
        moving.map_or(Fault::Hang, |broken| applied(&broken))
    }
}

/// Passes `bytes` on, `rate` in a second.
async fn trickle(bytes: &[u8], rate: usize, to: &mut WriteHalf<'_>) -> io::Result<()> {
    for piece in bytes.chunks(rate / 50) {
        sleep(Duration::from_millis(20)).await;
        to.write_all(piece).await?;
    }
    Ok(())
}
