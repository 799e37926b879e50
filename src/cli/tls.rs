//! TLS of the commands that ask an instance, with a server whose certificate this machine trusts. Instances speak none.

use std::{error::Error, io, sync::Arc};

use rustls_native_certs::load_native_certs;
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        self, CertificateError, ClientConfig, InvalidMessage, OtherError, RootCertStore,
        crypto::ring, pki_types::ServerName,
    },
};

use crate::problem::with_causes;

/// TLS on `socket` with the one whose certificate is for `host`, as it stands in a URL.
pub(super) async fn secure(socket: TcpStream, host: &str) -> Result<TlsStream<TcpStream>, String> {
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned());
    let name = name.map_err(|_| "its host is no name that a certificate can have")?;
    let connector = TlsConnector::from(Arc::new(config()?));
    let connected = connector.connect(name, socket).await;
    connected.map_err(|error| refusal(&error))
}

fn config() -> Result<ClientConfig, String> {
    let found = load_native_certs();
    let mut authorities = RootCertStore::empty();
    authorities.add_parsable_certificates(found.certs);
    if authorities.is_empty() {
        let errors = found.errors.iter().map(|error| format!(": {error}"));
        let errors: String = errors.collect();
        return Err(format!(
            "this machine has no certificates of authorities{errors}; install its package ca-certificates, or name a \
             file of them in SSL_CERT_FILE"
        ));
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    match builder.with_safe_default_protocol_versions() {
        Ok(builder) => Ok(builder
            .with_root_certificates(authorities)
            .with_no_client_auth()),
        Err(error) => unreachable!("ring has what the default versions of TLS need: {error}"),
    }
}

/// Why a handshake failed: rustls wraps its own error in one of I/O.
fn refusal(error: &io::Error) -> String {
    let cause = error.get_ref().and_then(|error| error.downcast_ref());
    match cause {
        Some(rustls::Error::InvalidCertificate(flaw)) => flawed(flaw),
        Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)) => {
            "what is there speaks no TLS; for an instance without a proxy in front write http"
                .to_owned()
        }
        _ => with_causes(error),
    }
}

fn flawed(flaw: &CertificateError) -> String {
    use CertificateError::{
        Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet,
        NotValidYetContext, Other, UnknownIssuer,
    };
    match flaw {
        UnknownIssuer => "its certificate is from no authority that this machine trusts; SSL_CERT_FILE names a file of \
                          certificates to trust instead"
            .to_owned(),
        // As `openssl req -x509` makes one by default.
        Other(OtherError(cause)) if is_of_an_authority(&**cause) => {
            "its certificate is that of an authority, which can only issue others; make one with \
             basicConstraints=CA:FALSE"
                .to_owned()
        }
        NotValidForName | NotValidForNameContext { .. } => {
            format!("{flaw}; ask it by a name of its certificate")
        }
        Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. } => {
            format!("{flaw}; is the clock of this machine right?")
        }
        _ => flaw.to_string(),
    }
}

fn is_of_an_authority(flaw: &(dyn Error + 'static)) -> bool {
    matches!(flaw.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
}
