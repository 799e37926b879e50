//! One delivery of a request to a Machine, as a strict proxy makes it over a slow network: small socket buffers, the body
//! in pieces with rests between them, and no answer that counts before the whole request was taken.

use std::{io, net::SocketAddr, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Uri, header},
};
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::sleep,
};

/// The bytes that the kernel may hold of what is sent, so that a Machine which does not read is met early.
const SEND_BUFFER: u32 = 8 << 10;
/// The bytes sent at once, and the rest after them.
const PIECE: usize = 16 << 10;
const REST: Duration = Duration::from_millis(2);
/// The largest body that is taken, in bytes.
const MAX_BODY: usize = 10_000_000;

/// Why a delivery brought no answer.
#[derive(Debug)]
pub(super) enum Lost {
    /// The body is larger than what an edge keeps.
    TooLarge,
    /// The connection ended before the request was taken or the answer was whole.
    Cut,
}

impl From<io::Error> for Lost {
    fn from(_: io::Error) -> Self {
        Self::Cut
    }
}

/// A request: its head, what came of its body so far, kept for replays, and what is still to come.
pub(super) struct Taken {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub kept: Vec<u8>,
    pub rest: Body,
}

impl Taken {
    /// The next piece of the body behind its first `sent` bytes; `None` at its end.
    async fn piece(&mut self, sent: usize) -> Result<Option<&[u8]>, Lost> {
        while self.kept.len() == sent {
            let Some(frame) = self.rest.frame().await else {
                return Ok(None);
            };
            let data = frame.map_err(|_| Lost::Cut)?.into_data();
            self.kept.extend_from_slice(&data.unwrap_or_default());
            if self.kept.len() > MAX_BODY {
                return Err(Lost::TooLarge);
            }
        }
        let end = self.kept.len().min(sent + PIECE);
        Ok(Some(&self.kept[sent..end]))
    }

    /// Takes what is still to come, so that the client gets its answer.
    pub(super) async fn take_rest(&mut self) {
        let mut taken = self.kept.len();
        while let Some(Ok(frame)) = self.rest.frame().await {
            taken += frame.data_ref().map_or(0, Bytes::len);
            if taken > 2 * MAX_BODY {
                return;
            }
        }
    }

    fn is_chunked(&self) -> bool {
        !self.headers.contains_key(header::CONTENT_LENGTH)
    }

    fn head(&self) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.uri).into_bytes();
        let framing = self
            .is_chunked()
            .then_some(("transfer-encoding", "chunked"));
        for (name, value) in [("connection", "close")].into_iter().chain(framing) {
            head.extend(format!("{name}: {value}\r\n").bytes());
        }
        for (name, value) in &self.headers {
            head.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
        }
        head.extend(b"\r\n");
        head
    }
}

/// A connection to a Machine.
pub(super) async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.connect(address).await
}

/// The answer to `request`, sent whole before it is read.
pub(super) async fn exchange(
    mut machine: TcpStream,
    request: &mut Taken,
) -> Result<Response<Bytes>, Lost> {
    machine.write_all(&request.head()).await?;
    let is_chunked = request.is_chunked();
    let mut sent = 0;
    while let Some(piece) = request.piece(sent).await? {
        if is_chunked {
            machine
                .write_all(format!("{:x}\r\n", piece.len()).as_bytes())
                .await?;
        }
        machine.write_all(piece).await?;
        sent += piece.len();
        if is_chunked {
            machine.write_all(b"\r\n").await?;
        }
        sleep(REST).await;
    }
    if is_chunked {
        machine.write_all(b"0\r\n\r\n").await?;
    }
    let mut received = Vec::new();
    machine.read_to_end(&mut received).await?;
    parse(&received).ok_or(Lost::Cut)
}

/// The answer in `received`, which is all that came; `None` for one that is not whole.
fn parse(received: &[u8]) -> Option<Response<Bytes>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(length) = head.parse(received).ok()? else {
        return None;
    };
    let body = &received[length..];
    let status = StatusCode::from_u16(head.code?).ok()?;
    if status.is_informational() {
        return parse(body);
    }
    let mut answer = Response::new(Bytes::new());
    *answer.status_mut() = status;
    for header in head.headers.iter() {
        let name = HeaderName::from_bytes(header.name.as_bytes()).ok()?;
        answer
            .headers_mut()
            .append(name, HeaderValue::from_bytes(header.value).ok()?);
    }
    let is_chunked = answer.headers().contains_key(header::TRANSFER_ENCODING);
    let length = answer.headers().get(header::CONTENT_LENGTH);
    let length = length.map_or(body.len(), |length| {
        length.to_str().unwrap().parse().unwrap()
    });
    *answer.body_mut() = if is_chunked {
        Bytes::from(unchunked(body)?)
    } else {
        Bytes::copy_from_slice(body.get(..length)?)
    };
    Some(answer)
}

fn unchunked(mut chunks: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let httparse::Status::Complete((head, length)) = httparse::parse_chunk_size(chunks).ok()?
        else {
            return None;
        };
        let length = usize::try_from(length).ok()?;
        if length == 0 {
            return Some(body);
        }
        body.extend(chunks.get(head..head + length)?);
        chunks = chunks.get(head + length + 2..)?;
    }
}
