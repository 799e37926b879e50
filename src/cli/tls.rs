//! TLS of the commands that ask an instance, with whoever this machine's authorities vouch for. Instances speak none.

use std::{error::Error, io, sync::Arc, time::Duration};

use rustls_native_certs::load_native_certs;
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        self, CertificateError, ClientConfig, InvalidMessage, OtherError, RootCertStore,
        crypto::ring,
        pki_types::{InvalidDnsNameError, ServerName},
    },
};

/// Why there is no TLS on a connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsError {
    /// No authority is known, so nobody can be trusted.
    #[error(
        "this machine has no certificates of authorities{0}; install its package ca-certificates, or name a file of \
         them in SSL_CERT_FILE"
    )]
    NoAuthorities(String),
    /// The host is no name that can stand in a certificate.
    #[error("its host is no name that a certificate can have")]
    Name(#[from] InvalidDnsNameError),
    /// Nobody known vouches for it.
    #[error(
        "its certificate is from no authority that this machine trusts; SSL_CERT_FILE names a file of certificates to \
         trust instead"
    )]
    UnknownIssuer,
    /// It shows an authority's certificate, as `openssl req -x509` makes one unless told.
    #[error(
        "its certificate is that of an authority, which can only issue others; make one with \
         basicConstraints=CA:FALSE"
    )]
    Authority,
    /// The certificate is somebody else's.
    #[error("{0}; ask it by a name of its certificate")]
    OtherName(CertificateError),
    /// The certificate is not valid now.
    #[error("{0}; is the clock of this machine right?")]
    OtherTime(CertificateError),
    /// The certificate has another flaw.
    #[error("{0}")]
    Certificate(CertificateError),
    /// It answered with something else, as an instance itself does.
    #[error("what is there speaks no TLS; for an instance without a proxy in front write http")]
    NoTls,
    /// The handshake took longer than this.
    #[error("no TLS within {0:?}")]
    TooLate(Duration),
    /// The connection failed, or there is no version or cipher that both know.
    #[error(transparent)]
    Failed(io::Error),
}

/// TLS on `socket` with the one whose certificate is for `host`, as it stands in a URL.
pub(super) async fn secure(
    socket: TcpStream,
    host: &str,
) -> Result<TlsStream<TcpStream>, TlsError> {
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())?;
    let connector = TlsConnector::from(Arc::new(config()?));
    connector.connect(name, socket).await.map_err(told)
}

fn config() -> Result<ClientConfig, TlsError> {
    let found = load_native_certs();
    let mut authorities = RootCertStore::empty();
    authorities.add_parsable_certificates(found.certs);
    if authorities.is_empty() {
        let errors = found.errors.iter().map(|error| format!(": {error}"));
        return Err(TlsError::NoAuthorities(errors.collect()));
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    match builder.with_safe_default_protocol_versions() {
        Ok(builder) => Ok(builder
            .with_root_certificates(authorities)
            .with_no_client_auth()),
        Err(error) => unreachable!("ring has what the default versions of TLS need: {error}"),
    }
}

/// What rustls says of a handshake, which it wraps in an error of I/O.
fn told(error: io::Error) -> TlsError {
    let cause = error.get_ref().and_then(|error| error.downcast_ref());
    match cause {
        Some(rustls::Error::InvalidCertificate(flaw)) => flawed(flaw.clone()),
        Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)) => TlsError::NoTls,
        _ => TlsError::Failed(error),
    }
}

fn flawed(flaw: CertificateError) -> TlsError {
    use CertificateError::{
        Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet,
        NotValidYetContext, Other, UnknownIssuer,
    };
    match flaw {
        UnknownIssuer => TlsError::UnknownIssuer,
        Other(OtherError(cause)) if is_of_an_authority(&*cause) => TlsError::Authority,
        NotValidForName | NotValidForNameContext { .. } => TlsError::OtherName(flaw),
        Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. } => {
            TlsError::OtherTime(flaw)
        }
        _ => TlsError::Certificate(flaw),
    }
}

fn is_of_an_authority(flaw: &(dyn Error + 'static)) -> bool {
    matches!(flaw.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
}
