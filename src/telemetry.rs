//! Logs, and traces where they are asked for, of `fly-rpc serve`: lines for people on a terminal, else JSON lines,
//! always on stderr. A call never waits for the reader of the log: a thread writes it, and when that is too slow, lines are lost
//! and counted. (`tracing-appender` counts them too, but does not log the count, and at the end it waits 100 ms for room
//! where this waits 1 s.) SIGUSR1 lets everything through, and the next one no more than before.

mod fields;
#[cfg(feature = "otlp")]
mod otlp;

use std::{
    io::{self, IsTerminal, Write},
    iter,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Receiver, SyncSender, TrySendError},
    },
    thread,
    time::Duration,
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::Instant,
};
use tokio_util::task::AbortOnDropHandle;
use tracing_subscriber::{
    EnvFilter, Layer, Registry, field::MakeExt, fmt, fmt::format, layer::SubscriberExt, reload,
    util::SubscriberInitExt,
};

use self::fields::{JsonLine, put_printable};
pub(crate) use self::fields::{printable, printable_json};
use crate::config::Config;

/// Lines that wait to be written; further ones are lost.
const WAITING: usize = 8192;
/// How long the thread that writes waits, when it has a line, for those that come soon after, so that they are written together:
/// otherwise each call would wake it, and cost a system call.
const GATHERED: Duration = Duration::from_millis(5);
/// The most bytes of lines that are written together: what a pipe takes whole (`PIPE_BUF` of Linux), so that what an app writes
/// to the same pipe stands between our lines and not in them.
const TOGETHER: usize = 4096;
/// How long the end of the process waits for the last lines.
const LAST_LINES: Duration = Duration::from_secs(1);
/// The pause between two looks whether there is room for one more message, or in the pipe.
const PAUSE: Duration = Duration::from_millis(10);

/// The filter after SIGUSR1.
const LOUD: &str = "debug";

/// Where lines go in; cheap to clone.
#[derive(Clone)]
struct Log {
    /// `None` asks to be answered when everything before it is written.
    lines: SyncSender<Option<Vec<u8>>>,
    lost: Arc<AtomicU64>,
}

/// Keeps the log; dropping it waits for the last lines, for at most 1 s.
#[must_use = "the last lines of the log are written when this is dropped"]
pub(crate) struct Guard {
    log: Log,
    flushed: Receiver<()>,
    _filter: AbortOnDropHandle<()>,
    #[cfg(feature = "otlp")]
    _traces: Option<otlp::Traces>,
}

/// Sends logs that pass the filter of `config` to stderr, panics among them, and exports traces as those of `service`, if it
/// is named; once in a process.
///
/// # Errors
/// No thread can be started, SIGUSR1 cannot be listened for, or traces cannot be exported.
pub(crate) fn init(config: &Config, service: Option<String>) -> Result<Guard, String> {
    let usual = config.log.clone();
    let no_log = |error: io::Error| format!("the log cannot be written: {error}");
    let more = signal(SignalKind::user_defined1()).map_err(no_log)?;
    let (log, flushed) = Log::start(io::stderr()).map_err(no_log)?;
    let lines = log.clone();
    let (filter, handle) = reload::Layer::new(EnvFilter::new(&usual));
    let format = fmt::layer()
        // Its own complaints would go to the stderr that just failed, and panic there.
        .log_internal_errors(false)
        .with_writer(move || lines.clone())
        .with_target(false);
    let format = if io::stderr().is_terminal() {
        let fields = format::debug_fn(put_printable).delimited(" ");
        format.fmt_fields(fields).boxed()
    } else {
        format.fmt_fields(JsonLine).event_format(JsonLine).boxed()
    };
    let subscriber = tracing_subscriber::registry().with(format.with_filter(filter));
    #[cfg(feature = "otlp")]
    let traces = service.map(|service| otlp::Traces::start(service, &config.identity));
    #[cfg(feature = "otlp")]
    let traces = traces.transpose()?;
    #[cfg(feature = "otlp")]
    match &traces {
        Some(traces) => subscriber.with(traces.layer()).init(),
        // A layer of `None` would still be asked about each span and each line.
        None => subscriber.init(),
    }
    #[cfg(not(feature = "otlp"))]
    subscriber.init();
    #[cfg(not(feature = "otlp"))]
    if let Some(service) = service {
        let why = "this program is built without the feature otlp";
        tracing::warn!(service, why, "traces are not exported");
    }
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "panicked")));
    Ok(Guard {
        log,
        flushed,
        _filter: AbortOnDropHandle::new(tokio::spawn(switch(handle, usual, more))),
        #[cfg(feature = "otlp")]
        _traces: traces,
    })
}

/// Switches between the usual filter and one that lets everything through, at each signal.
async fn switch(handle: reload::Handle<EnvFilter, Registry>, usual: String, mut more: Signal) {
    let filters = [(LOUD, true), (&usual, false)];
    for (filter, is_loud) in filters.into_iter().cycle() {
        if more.recv().await.is_none() {
            return;
        }
        // Logged while the filter that lets more through holds.
        if !is_loud {
            tracing::info!(filter, "log filter changed");
        }
        // The filter is gone only when the subscriber is, and then there is no log.
        let _ = handle.reload(EnvFilter::new(filter));
        if is_loud {
            tracing::info!(filter, "log filter changed");
        }
    }
}

impl Log {
    /// Starts the thread that writes to `output`; the receiver gets a word for each `None`.
    fn start(output: impl Write + Send + 'static) -> io::Result<(Self, Receiver<()>)> {
        let (lines, waiting) = mpsc::sync_channel::<Option<Vec<u8>>>(WAITING);
        let (written, flushed) = mpsc::sync_channel(1);
        let lost = Arc::<AtomicU64>::default();
        let counted = Arc::clone(&lost);
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write_lines(output, &waiting, &written, &counted))?;
        Ok((Self { lines, lost }, flushed))
    }
}

/// Writes what waits until nobody can send any more, and answers on `written` when it was asked to.
fn write_lines(
    mut output: impl Write,
    waiting: &Receiver<Option<Vec<u8>>>,
    written: &SyncSender<()>,
    lost: &AtomicU64,
) {
    let mut together = Vec::with_capacity(TOGETHER);
    // Whether what was written last is a part of a line.
    let mut is_torn = false;
    // Writes lines; whether the output took all of them. Those that it did not, as on a disk that is full, are lost.
    let mut put = |lines: &mut Vec<u8>| {
        if is_torn {
            lines.insert(0, b'\n');
        }
        let written = write_all(&mut output, lines);
        let left = lines[written..].split(|byte| *byte == b'\n');
        let left = left.filter(|line| !line.is_empty());
        let left = u64::try_from(left.count()).unwrap_or(u64::MAX);
        is_torn = lines[..written]
            .last()
            .map_or(is_torn, |last| *last != b'\n');
        lines.clear();
        lost.fetch_add(left, Ordering::Relaxed);
        left == 0
    };
    let mut is_taken = true;
    while let Ok(first) = waiting.recv() {
        if first.is_some() {
            thread::sleep(GATHERED);
        }
        let mut is_flush_asked = false;
        // No more than there is room for, so that an endless stream of lines holds up neither the flush nor the count of the lost.
        for line in iter::once(first).chain(waiting.try_iter().take(WAITING)) {
            let Some(line) = line else {
                is_flush_asked = true;
                continue;
            };
            if together.len() + line.len() > TOGETHER {
                put(&mut together);
            }
            together.extend_from_slice(&line);
        }
        if !together.is_empty() {
            is_taken = put(&mut together);
        }
        if is_flush_asked {
            let _ = written.send(());
        }
        // Said once the output takes lines: this one would be lost too.
        let lines = if is_taken {
            lost.swap(0, Ordering::Relaxed)
        } else {
            0
        };
        if lines > 0 {
            tracing::warn!(
                lines,
                "log lines were lost: stderr was full, or read too slowly"
            );
        }
    }
}

/// Writes `lines`, also to a pipe that another process, which shares it, has made non-blocking. Returns how many bytes were
/// written: less than all after an error.
fn write_all(output: &mut impl Write, lines: &[u8]) -> usize {
    let mut written = 0;
    while written < lines.len() {
        match output.write(&lines[written..]) {
            Ok(0) => break,
            Ok(more) => written += more,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(PAUSE),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    written
}

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.lines.try_send(Some(line.to_vec())).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Guard {
    /// Waits until the lines so far are written, for at most 1 s; blocks.
    pub(crate) fn flush(&self) {
        // Never without a bound: the thread may be writing to a pipe that nobody reads.
        let deadline = Instant::now() + LAST_LINES;
        while let Err(TrySendError::Full(_)) = self.log.lines.try_send(None) {
            if Instant::now() > deadline {
                return;
            }
            thread::sleep(PAUSE);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let _ = self.flushed.recv_timeout(left);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with so much room, which it is given back when it is full for the second time.
    struct Disk {
        kept: Vec<u8>,
        room: usize,
        refusals: usize,
    }

    impl Write for &mut Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.room == 0 {
                self.refusals += 1;
                if self.refusals == 2 {
                    self.room = usize::MAX;
                }
                return Err(io::ErrorKind::StorageFull.into());
            }
            let size = bytes.len().min(self.room);
            self.room -= size;
            self.kept.extend_from_slice(&bytes[..size]);
            Ok(size)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_disk_that_was_full_loses_whole_lines_which_are_counted() {
        let (lines, waiting) = mpsc::sync_channel(WAITING);
        let (written, flushed) = mpsc::sync_channel(1);
        let lost = AtomicU64::new(0);
        let mut disk = Disk {
            kept: Vec::new(),
            room: 6,
            refusals: 0,
        };
        let mut counts = Vec::new();
        thread::scope(|scope| {
            let (disk, lost) = (&mut disk, &lost);
            scope.spawn(move || write_lines(disk, &waiting, &written, lost));
            for line in ["one\n", "two\n", "three\n", "four\n", "five\n"] {
                lines.send(Some(line.into())).unwrap();
                lines.send(None).unwrap();
                flushed.recv().unwrap();
                counts.push(lost.load(Ordering::Relaxed));
            }
            drop(lines);
        });
        assert_eq!(
            String::from_utf8(disk.kept).unwrap(),
            "one\ntw\nfour\nfive\n"
        );
        // They are reported, and no longer counted, when the disk takes lines again.
        assert_eq!(counts[1..3], [1, 2]);
        assert_eq!(lost.into_inner(), 0);
    }
}
