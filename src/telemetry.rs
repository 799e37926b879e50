//! Logs, and where they are asked for traces, of `fly-rpc serve`: lines for people on a terminal, JSON lines elsewhere, always on stderr, written by a thread
//! of their own. A call never waits for whoever reads the log: when nobody does, lines are lost and counted. SIGUSR1 lets
//! everything through, and the next one no more than before.

mod fields;
#[cfg(feature = "otlp")]
mod otlp;

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
use tracing_subscriber::{
    EnvFilter, Layer, Registry, field::MakeExt, fmt, fmt::format, layer::SubscriberExt, reload,
    util::SubscriberInitExt,
};

use self::fields::{JsonSpanFields, put_printable};
pub(crate) use self::fields::{printable, printable_json};
use crate::config::{Config, TraceExport};

/// Lines that wait to be written; further ones are lost.
const WAITING: usize = 4096;
/// How long the end of the process waits for the last lines.
const LAST_LINES: Duration = Duration::from_secs(1);
/// The pause between two looks whether there is room for one more message.
const PAUSE: Duration = Duration::from_millis(10);

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TelemetryError {
    /// No thread can be started that writes it.
    #[error("the log cannot be written: {0}")]
    Log(#[from] io::Error),
    /// Traces cannot be exported.
    #[cfg(feature = "otlp")]
    #[error(transparent)]
    Traces(#[from] otlp::OtlpError),
}

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
pub(crate) struct Guard {
    log: Log,
    #[cfg(feature = "otlp")]
    _traces: Option<otlp::Traces>,
}

/// Changes which lines are written.
pub(crate) struct Volume {
    filter: reload::Handle<EnvFilter, Registry>,
    usual: String,
    is_loud: bool,
}

/// What is let through when somebody wants to see more than usual.
const LOUD: &str = "debug";

/// Sends logs that pass the filter of `config` to stderr, panics among them, and traces where `export` says; once in a
/// process.
///
/// # Errors
/// No thread can be started, or traces cannot be exported.
pub(crate) fn init(
    config: &Config,
    export: Option<&TraceExport>,
) -> Result<(Guard, Volume), TelemetryError> {
    let usual = &config.log;
    let log = Log::start(io::stderr())?;
    let lines = log.clone();
    let (filter, handle) = reload::Layer::new(EnvFilter::new(usual));
    let format = fmt::layer()
        // Its own complaints would go to the stderr that just failed, and panic there.
        .log_internal_errors(false)
        .with_writer(move || lines.clone())
        .with_target(false);
    let format = if io::stderr().is_terminal() {
        let fields = format::debug_fn(put_printable).delimited(" ");
        format.fmt_fields(fields).boxed()
    } else {
        let json = format.json().flatten_event(true).with_span_list(false);
        json.fmt_fields(JsonSpanFields).boxed()
    };
    let subscriber = tracing_subscriber::registry().with(format.with_filter(filter));
    #[cfg(feature = "otlp")]
    let traces = export.map(|export| otlp::Traces::start(export, &config.identity));
    #[cfg(feature = "otlp")]
    let traces = traces.transpose()?;
    #[cfg(feature = "otlp")]
    match &traces {
        Some(traces) => subscriber.with(traces.layer()).init(),
        // A layer that is none would still be asked about each span and each line.
        None => subscriber.init(),
    }
    #[cfg(not(feature = "otlp"))]
    subscriber.init();
    #[cfg(not(feature = "otlp"))]
    if let Some(TraceExport { service }) = export {
        let why = "this program is built without the feature otlp";
        tracing::warn!(service, why, "traces are not exported");
    }
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "panicked")));
    let volume = Volume {
        filter: handle,
        usual: usual.clone(),
        is_loud: false,
    };
    let guard = Guard {
        log,
        #[cfg(feature = "otlp")]
        _traces: traces,
    };
    Ok((guard, volume))
}

impl Volume {
    /// Lets everything through, or no more than usual again.
    pub(crate) fn toggle(&mut self) {
        self.is_loud = !self.is_loud;
        let filter = if self.is_loud { LOUD } else { &self.usual };
        if !self.is_loud {
            tracing::info!(filter, "log filter changed");
        }
        // The filter is gone only when the subscriber is, and then there is no log.
        let _ = self.filter.reload(EnvFilter::new(filter));
        if self.is_loud {
            tracing::info!(filter, "log filter changed");
        }
    }
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
        while let Err(TrySendError::Full(unsent)) = self.log.lines.try_send(message) {
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
