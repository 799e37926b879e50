//! Logs of `fly-rpc serve`: lines for people on a terminal, JSON lines elsewhere, always on stderr, written by a thread
//! of their own. A call never waits for whoever reads the log: when nobody does, lines are lost and counted.

mod fields;

use std::{
    io::{self, IsTerminal, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Receiver, SyncSender, TrySendError},
    },
    thread,
    time::Duration,
};

use tokio::time::Instant;
use tracing_subscriber::EnvFilter;

use self::fields::JsonSpanFields;

/// Lines that wait to be written; further ones are lost.
const WAITING: usize = 4096;
/// How long the end of the process waits for the last lines.
const LAST_LINES: Duration = Duration::from_secs(1);
/// The pause between two looks whether there is room for one more message.
const PAUSE: Duration = Duration::from_millis(10);

/// What the writing thread is told.
enum Message {
    /// Write this line.
    Line(Vec<u8>),
    /// Everything before this is written: drop the sender as a sign of it.
    Flushed(SyncSender<()>),
}

/// Where lines go in; cheap to clone.
#[derive(Clone)]
struct Log {
    lines: SyncSender<Message>,
    lost: Arc<AtomicU64>,
}

/// Keeps the log; dropping it waits for the last lines, for at most 1 s.
#[must_use = "the last lines of the log are written when this is dropped"]
pub(crate) struct Guard(Log);

/// Sends logs that pass `filter` to stderr, panics among them; once in a process.
///
/// # Errors
/// No thread can be started.
pub(crate) fn init(filter: &str) -> io::Result<Guard> {
    let log = Log::start(io::stderr())?;
    let lines = log.clone();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        // Its own complaints would go to the stderr that just failed, and panic there.
        .log_internal_errors(false)
        .with_writer(move || lines.clone())
        .with_target(false);
    if io::stderr().is_terminal() {
        builder.init();
    } else {
        builder
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .fmt_fields(JsonSpanFields)
            .init();
    }
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "panicked")));
    Ok(Guard(log))
}

impl Log {
    fn start(output: impl Write + Send + 'static) -> io::Result<Self> {
        let (lines, waiting) = mpsc::sync_channel(WAITING);
        let lost = Arc::<AtomicU64>::default();
        let counted = Arc::clone(&lost);
        let writer = thread::Builder::new().name("log".to_owned());
        writer.spawn(move || write_all(&waiting, output, &counted))?;
        Ok(Self { lines, lost })
    }
}

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.lines.try_send(Message::Line(line.to_vec())).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let deadline = Instant::now() + LAST_LINES;
        let (sender, flushed) = mpsc::sync_channel(0);
        let mut message = Message::Flushed(sender);
        while let Err(TrySendError::Full(unsent)) = self.0.lines.try_send(message) {
            if Instant::now() > deadline {
                return;
            }
            message = unsent;
            thread::sleep(PAUSE);
        }
        // Nothing is ever sent: the end of the sender is the news.
        let _ = flushed.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}

/// Writes until the process ends; what cannot be written is lost, for there is no other place to say so.
fn write_all(waiting: &Receiver<Message>, mut output: impl Write, lost: &AtomicU64) {
    for message in waiting {
        match message {
            Message::Line(line) => {
                let _ = output.write_all(&line);
            }
            Message::Flushed(sender) => drop(sender),
        }
        let lines = lost.swap(0, Ordering::Relaxed);
        if lines > 0 {
            tracing::warn!(lines, "log lines were lost: stderr is read too slowly");
        }
    }
}
