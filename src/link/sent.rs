//! Whether any byte of a request may have left: the one question on which `executed: no` or `maybe` hangs.
//!
//! hyper asks a request's body for its bytes only after a connection stands and before it flushes the head. So while
//! the body was not asked, nothing was sent, whichever error or timeout ended the request.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;

/// Tells whether the body that it was made with was asked for its bytes.
#[derive(Debug)]
pub(super) struct Sent(Arc<AtomicBool>);

impl Sent {
    /// Whether no byte of the request can have left.
    pub(super) fn nothing(&self) -> bool {
        !self.0.load(Ordering::Acquire)
    }
}

/// A body of `bytes`, and the witness of its sending.
pub(super) fn watched(bytes: Vec<u8>) -> (reqwest::Body, Sent) {
    let asked = Arc::new(AtomicBool::new(false));
    let body = Watched {
        bytes: Full::new(bytes.into()),
        asked: Arc::clone(&asked),
    };
    (reqwest::Body::wrap(body), Sent(asked))
}

struct Watched {
    bytes: Full<Bytes>,
    asked: Arc<AtomicBool>,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.asked.store(true, Ordering::Release);
        Pin::new(&mut self.bytes).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.bytes.size_hint()
    }
}
