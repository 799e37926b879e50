//! The command line asks an instance behind an end of TLS, as Fly Proxy is, and sends nothing where it cannot trust it.
//! The certificates in `tls/` share one key, which guards nothing; `other` is an authority that issued none of them.

use std::{
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};
use tokio_util::task::AbortOnDropHandle;

use crate::support::{
    command::run_with,
    process::{Environment, Process},
};

const TOKEN: &str = "the-token-of-the-client-shop-00000003";
const UPCASE: [&str; 5] = ["call", "local", "String.upcase", "fly", "--quiet"];

/// An end of TLS in front of an instance.
struct End {
    address: SocketAddr,
    /// How many connections got past the handshake.
    trusted: Arc<AtomicUsize>,
    _task: AbortOnDropHandle<()>,
}

impl End {
    /// In front of `instance`, with a certificate of `tls/`.
    async fn of(instance: &Process, certificate: &str) -> Self {
        let (acceptor, target) = (acceptor(certificate), instance.address);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let trusted = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&trusted);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // A client that does not trust this end hangs up.
                let Ok(mut near) = acceptor.accept(stream).await else {
                    continue;
                };
                count.fetch_add(1, Ordering::Relaxed);
                let mut far = TcpStream::connect(target).await.unwrap();
                // How a connection ends is not what is tested.
                let _ = copy_bidirectional(&mut near, &mut far).await;
            }
        });
        Self {
            address,
            trusted,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// What a call of the command line comes to that asks `host` here and trusts `authorities`.
    async fn asked(&self, host: &str, authorities: &str) -> (i32, String, String) {
        let url = format!("https://{host}:{}", self.address.port());
        let variables = [
            ("FLY_RPC_URL", url.as_str()),
            ("FLY_RPC_TOKEN", TOKEN),
            ("SSL_CERT_FILE", authorities),
        ];
        run_with(&UPCASE, &variables).await
    }

    /// What is said where that fails before anything was sent.
    async fn failure(&self, host: &str, authorities: &str) -> String {
        let (code, stdout, stderr) = self.asked(host, authorities).await;
        assert_eq!((code, stdout.as_str()), (1, ""), "{stderr}");
        assert_eq!(self.trusted.load(Ordering::Relaxed), 0);
        let url = format!("https://{host}:{}", self.address.port());
        let why = stderr.strip_prefix(&format!("fly-rpc: cannot reach {url}: "));
        why.unwrap_or_else(|| panic!("{stderr}")).to_owned()
    }
}

fn path(certificate: &str) -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/program/tls");
    format!("{folder}/{certificate}.pem")
}

fn acceptor(certificate: &str) -> TlsAcceptor {
    let certificate = CertificateDer::from_pem_file(path(certificate)).unwrap();
    let key = PrivateKeyDer::from_pem_file(path("key")).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

async fn instance() -> Process {
    let environment = Environment::from([
        ("RPC_LISTEN", "127.0.0.1:0".to_owned()),
        ("RPC_DRAIN_DELAY", "0s".to_owned()),
        ("RPC_CLIENT_TOKENS", format!("shop:{TOKEN}")),
    ]);
    Process::start(&environment).await
}

#[tokio::test]
async fn an_instance_behind_tls_is_asked_where_its_certificate_is_trusted() {
    let instance = instance().await;
    let end = End::of(&instance, "certificate").await;
    let answered = end.asked("127.0.0.1", &path("certificate")).await;
    assert_eq!(answered, (0, "\"FLY\"\n".to_owned(), String::new()));
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_is_named_with_what_to_do() {
    let instance = instance().await;
    let none = "its certificate is from no authority that this machine trusts; SSL_CERT_FILE names a file of \
                certificates to trust instead\n";
    let end = End::of(&instance, "certificate").await;
    assert_eq!(end.failure("127.0.0.1", &path("other")).await, none);
    let other = end.failure("localhost", &path("certificate")).await;
    assert_eq!(
        other,
        "certificate not valid for name \"localhost\"; certificate is only valid for IpAddress(127.0.0.1); ask it by a \
         name of its certificate\n"
    );
    // As `openssl req -x509` makes one.
    let end = End::of(&instance, "authority").await;
    for trusted in ["other", "authority"] {
        assert_eq!(
            end.failure("127.0.0.1", &path(trusted)).await,
            "its certificate is that of an authority, which can only issue others; make one with \
             basicConstraints=CA:FALSE\n"
        );
    }
    let end = End::of(&instance, "expired").await;
    let expired = end.failure("127.0.0.1", &path("expired")).await;
    assert!(
        expired.starts_with("certificate expired: ")
            && expired.ends_with("; is the clock of this machine right?\n"),
        "{expired}"
    );
}

#[tokio::test]
async fn without_certificates_of_authorities_nobody_is_trusted() {
    let instance = instance().await;
    let end = End::of(&instance, "certificate").await;
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty.pem");
    fs::write(&empty, "").unwrap();
    let why = end.failure("127.0.0.1", empty.to_str().unwrap()).await;
    assert!(
        why.starts_with("this machine has no certificates of authorities"),
        "{why}"
    );
}

#[tokio::test]
async fn an_instance_that_is_asked_by_https_itself_speaks_no_tls() {
    let instance = instance().await;
    let url = format!("https://{}", instance.address);
    let authorities = path("certificate");
    let variables = [
        ("FLY_RPC_URL", url.as_str()),
        ("SSL_CERT_FILE", authorities.as_str()),
    ];
    let (code, stdout, stderr) = run_with(&UPCASE, &variables).await;
    assert_eq!((code, stdout.as_str()), (1, ""));
    let why = "what is there speaks no TLS; for an instance without a proxy in front write http";
    assert_eq!(stderr, format!("fly-rpc: cannot reach {url}: {why}\n"));
}

#[tokio::test]
async fn an_end_of_tls_that_is_asked_by_http_is_to_be_tried_by_https() {
    let instance = instance().await;
    let end = End::of(&instance, "certificate").await;
    let refusal =
        b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/html\r\ncontent-length: 0\r\n\r\n";
    let answers: [(&[u8], &str); 2] = [
        // As nginx and Go answer at a port with TLS; others close the connection.
        (
            refusal,
            "the answer is not one of fly-rpc: status 400 Bad Request",
        ),
        (b"", "connection closed before message completed"),
    ];
    let mut cases = vec![(end.address, "no answer from ")];
    for (bytes, what) in answers {
        cases.push((answering(bytes).await, what));
    }
    for (address, what) in cases {
        let url = format!("http://{address}");
        let (code, stdout, stderr) = run_with(&UPCASE, &[("FLY_RPC_URL", &url)]).await;
        assert_eq!((code, stdout.as_str()), (1, ""));
        let hint = format!("; if this port speaks TLS, try https://{address}\n");
        assert!(stderr.contains(what) && stderr.ends_with(&hint), "{stderr}");
    }
}

/// Where one connection is answered with these bytes and closed.
async fn answering(bytes: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
        stream.write_all(bytes).await.unwrap();
    });
    address
}
