//! The body of an answer, which keeps its connection busy, and what else it holds, until the last byte is with the kernel.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum::body::{Body, Bytes};
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use super::places::Serving;
use crate::memory::{Budget, Reserved};

/// A body whose bytes each hold `serving`, and count in `memory`.
#[derive(Debug)]
pub(super) struct Answering {
    pub(super) body: Body,
    pub(super) serving: Serving,
    pub(super) memory: Arc<Budget>,
}

/// Bytes that hyper has and the kernel has not; hyper drops them when they are written.
struct Unwritten {
    bytes: Bytes,
    _serving: Serving,
    _reserved: Reserved,
}

impl AsRef<[u8]> for Unwritten {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl HttpBody for Answering {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        let held = |bytes: Bytes| {
            Bytes::from_owner(Unwritten {
                _reserved: self.memory.take(bytes.len()),
                bytes,
                _serving: self.serving.clone(),
            })
        };
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(held))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
