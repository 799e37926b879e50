//! The body of a request that is answered without it: read and thrown away, within bounds.
//!
//! A server that answers and closes with unread bytes resets the connection, and the reset may overtake the answer (RFC
//! 9112, section 9.6): a proxy in between then answers 502 itself, and the replay is lost with the answer.

use std::{pin::pin, time::Duration};

use bytes::Buf;
use http_body::Body;
use http_body_util::BodyExt;
use tokio::time;

/// The most bytes that are read: what an edge of Fly keeps of a request (PA01 in
/// <https://fly.io/docs/monitoring/error-codes/>).
const MAX_BYTES: usize = 10_000_000;

/// How long a body may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// Until its next bytes.
    pub(super) stall: Duration,
    /// Until its end.
    pub(super) arrival: Duration,
}

/// How far a body was read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Discarded {
    /// To its end, after so many bytes.
    Whole(usize),
    /// It is larger than what is read.
    TooLarge,
    /// It was cut short, or did not arrive in time.
    Cut,
}

/// Reads `body` to its end, as far as the bounds allow; one that says that it is above them is not read at all.
pub(super) async fn discard<B: Body>(body: B, patience: Patience) -> Discarded {
    if body.size_hint().lower() > MAX_BYTES as u64 {
        return Discarded::TooLarge;
    }
    time::timeout(patience.arrival, read(body, patience.stall))
        .await
        .unwrap_or(Discarded::Cut)
}

async fn read<B: Body>(body: B, stall: Duration) -> Discarded {
    let mut body = pin!(body);
    let mut size = 0;
    loop {
        match time::timeout(stall, body.frame()).await {
            Ok(None) => return Discarded::Whole(size),
            Ok(Some(Ok(frame))) => size += frame.data_ref().map_or(0, Buf::remaining),
            Ok(Some(Err(_))) | Err(_) => return Discarded::Cut,
        }
        if size > MAX_BYTES {
            return Discarded::TooLarge;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future::pending};

    use bytes::Bytes;
    use futures_util::stream;
    use http_body::Frame;
    use http_body_util::{Full, StreamBody};

    use super::*;

    async fn discarded<B: Body>(body: B) -> Discarded {
        let patience = Patience {
            stall: Duration::from_secs(10),
            arrival: Duration::from_secs(60),
        };
        discard(body, patience).await
    }

    #[tokio::test(start_paused = true)]
    async fn every_body_comes_to_an_end() {
        const MB: usize = 1_000_000;
        let piece = |_| Ok::<_, Infallible>(Frame::data(Bytes::from(vec![0; MB])));
        let pieces = |count| StreamBody::new(stream::iter((0..count).map(piece)));
        assert_eq!(discarded(pieces(10)).await, Discarded::Whole(10 * MB));
        assert_eq!(discarded(pieces(usize::MAX)).await, Discarded::TooLarge);
        let said = Full::new(Bytes::from(vec![0; 10 * MB + 1]));
        assert_eq!(discarded(said).await, Discarded::TooLarge);
        let silent = StreamBody::new(stream::once(pending::<Result<Frame<Bytes>, Infallible>>()));
        assert_eq!(discarded(silent).await, Discarded::Cut);
        let slow = stream::unfold((), |()| async {
            time::sleep(Duration::from_secs(9)).await;
            Some((
                Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"x"))),
                (),
            ))
        });
        let slow = StreamBody::new(Box::pin(slow));
        assert_eq!(discarded(slow).await, Discarded::Cut);
        let failing = stream::iter([Err::<Frame<Bytes>, _>("reset")]);
        assert_eq!(discarded(StreamBody::new(failing)).await, Discarded::Cut);
    }
}
