//! A stranger at an address where a peer is expected: answers probes in its own way, and records every byte it is sent.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// What a stranger does with a request.
#[derive(Clone, Debug)]
pub(crate) enum Manner {
    /// Answers this body with `200`.
    Answer(String),
    /// Answers this body with another status.
    Refuse(u16, String),
    /// Sends the asker elsewhere.
    Redirect(SocketAddr),
    /// Passes the request on to an instance and its answer back.
    Relay(SocketAddr),
}

/// A running stranger; gone when it is dropped.
pub(crate) struct Stranger {
    pub address: SocketAddr,
    heard: Arc<Mutex<Vec<u8>>>,
    task: JoinHandle<()>,
}

impl Stranger {
    /// A stranger at `address`; port 0 takes a free one.
    pub(crate) async fn at(address: SocketAddr, manner: Manner) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let heard = Arc::<Mutex<Vec<u8>>>::default();
        let recorded = Arc::clone(&heard);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(meet(stream, manner.clone(), Arc::clone(&recorded)));
            }
        });
        Self {
            address,
            heard,
            task,
        }
    }

    /// Everything that it was sent so far.
    pub(crate) fn heard(&self) -> String {
        String::from_utf8_lossy(&self.heard.lock().unwrap()).into_owned()
    }

    /// How often it was asked who it is.
    pub(crate) fn probes(&self) -> usize {
        self.heard().matches("GET /internal/region").count()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn with_status(status: u16, body: &str) -> Vec<u8> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n");
    format!("{head}content-length: {length}\r\n\r\n{body}").into_bytes()
}

async fn meet(mut stream: TcpStream, manner: Manner, heard: Arc<Mutex<Vec<u8>>>) {
    let mut buffer = [0; 16 << 10];
    let Ok(count @ 1..) = stream.read(&mut buffer).await else {
        return;
    };
    let request = &buffer[..count];
    heard.lock().unwrap().extend(request);
    let answer = match manner {
        Manner::Answer(body) => with_status(200, &body),
        Manner::Refuse(status, body) => with_status(status, &body),
        Manner::Redirect(elsewhere) => format!(
            "HTTP/1.1 307 Temporary Redirect\r\nlocation: http://{elsewhere}/internal/region\r\ncontent-length: 0\r\n\r\n"
        )
        .into_bytes(),
        Manner::Relay(instance) => {
            let mut real = TcpStream::connect(instance).await.unwrap();
            real.write_all(request).await.unwrap();
            let Ok(count) = real.read(&mut buffer).await else {
                return;
            };
            buffer[..count].to_vec()
        }
    };
    // The asker may be gone, and everything of interest was recorded.
    let _ = stream.write_all(&answer).await;
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        heard.lock().unwrap().extend(&buffer[..count]);
    }
}
