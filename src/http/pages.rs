//! The pages: `/docs`, Swagger UI, to read and try the API; `/docs/problems`, what each code of a problem means; `/ui`,
//! the cluster as it is and calls as they end. Their files are in the binary, and send requests to no other server than the
//! instance that served them. Files, and other documents that rarely change, are compressed once, and not sent again to a
//! client that has them.

use std::{
    io::{self, Write},
    sync::{Arc, LazyLock},
};

use axum::{
    body::Bytes,
    http::{
        HeaderMap, StatusCode, Uri,
        header::{
            ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY,
            CONTENT_TYPE, ETAG, IF_NONE_MATCH, REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS,
        },
    },
    response::{IntoResponse, Response, Result},
};
use data_encoding::HEXLOWER;
use flate2::{Compression, write::GzEncoder};
use sha2::{Digest, Sha256};
use utoipa_swagger_ui::Config;

use super::request::{items, lists};
use crate::problem::{Code, Problem};

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript";
const STYLE: &str = "text/css";

/// What pages may load: files and answers of this instance. Swagger UI draws its icons from `data:`.
const POLICY: &str = "default-src 'none'; connect-src 'self'; img-src 'self' data:; script-src 'self'; style-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The path of each file, and the file.
static FILES: LazyLock<Vec<(&str, Page)>> = LazyLock::new(|| {
    let file = |path, content_type, text: &'static str| (path, Page::new(content_type, text));
    vec![
        file("/docs", HTML, include_str!("../../openapi/docs.html")),
        file(
            "/docs/docs.js",
            SCRIPT,
            include_str!("../../openapi/docs.js"),
        ),
        file(
            "/docs/docs.css",
            STYLE,
            include_str!("../../openapi/docs.css"),
        ),
        ("/docs/problems", Page::new(HTML, problems())),
        file("/ui", HTML, include_str!("ui/index.html")),
        file("/ui/ui.css", STYLE, include_str!("ui/ui.css")),
        file("/ui/ui.js", SCRIPT, include_str!("ui/ui.js")),
        file("/ui/api.js", SCRIPT, include_str!("ui/api.js")),
        file("/ui/call.js", SCRIPT, include_str!("ui/call.js")),
        file("/ui/dev.js", SCRIPT, include_str!("ui/dev.js")),
        file("/ui/dom.js", SCRIPT, include_str!("ui/dom.js")),
        file("/ui/map.js", SCRIPT, include_str!("ui/map.js")),
        file("/ui/places.js", SCRIPT, include_str!("ui/places.js")),
    ]
});

/// A page, or a file that one loads.
pub(super) async fn show(uri: Uri, headers: HeaderMap) -> Result<Response> {
    let response = match uri.path() {
        "/docs/swagger-ui-bundle.js" => swagger_ui("swagger-ui-bundle.js", SCRIPT)?,
        "/docs/swagger-ui.css" => swagger_ui("swagger-ui.css", STYLE)?,
        path => {
            let file = FILES.iter().find(|(known, _)| *known == path);
            let (_, document) = file.ok_or_else(|| Problem::new(Code::NotFound, "no such file"))?;
            document.answer(&headers)
        }
    };
    let policy = [
        (CONTENT_SECURITY_POLICY, POLICY),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    Ok((policy, response).into_response())
}

/// A file of Swagger UI, which every browser takes compressed.
fn swagger_ui(name: &str, content_type: &'static str) -> Result<Response, Problem> {
    let Ok(Some(found)) = utoipa_swagger_ui::serve(name, Arc::new(Config::default())) else {
        let detail = "a file of Swagger UI is missing";
        return Err(Problem::new(Code::Internal, detail));
    };
    let headers = [
        (CONTENT_TYPE, content_type),
        (CONTENT_ENCODING, "gzip"),
        (CACHE_CONTROL, "max-age=3600"),
    ];
    Ok((headers, found.bytes.into_owned()).into_response())
}

fn problems() -> String {
    let rows: String = Code::ALL.iter().copied().map(row).collect();
    include_str!("../../openapi/problems.html").replace("{{rows}}", &rows)
}

fn row(code: Code) -> String {
    let executed: Vec<_> = code.executed().iter().map(|one| one.as_str()).collect();
    let (status, title, executed) = (code.status(), code.title(), executed.join(" or "));
    let meaning = code.meaning().replace('`', "");
    format!(
        "<tr id=\"{code}\"><th scope=\"row\">{code}</th><td>{status}</td><td>{executed}</td><td>{title}. {meaning}</td></tr>\n"
    )
}

/// A document in both forms, plain and compressed.
#[derive(Debug)]
pub(crate) struct Page {
    content_type: &'static str,
    plain: Bytes,
    /// `None` where it could not be compressed.
    gzip: Option<Bytes>,
    /// Weak, so that one is enough for both forms.
    etag: String,
}

impl Page {
    pub(super) fn new(content_type: &'static str, plain: impl Into<Bytes>) -> Self {
        let plain = plain.into();
        let digits = HEXLOWER.encode(&Sha256::digest(&plain)[..16]);
        Self {
            content_type,
            gzip: compressed(&plain).ok().map(Bytes::from),
            etag: format!("W/\"{digits}\""),
            plain,
        }
    }

    pub(super) fn answer(&self, request: &HeaderMap) -> Response {
        let validator = [
            (CACHE_CONTROL, "no-cache"),
            (VARY, "accept-encoding"),
            (ETAG, &self.etag),
        ];
        // Weak or not counts for nothing here (RFC 9110, section 13.1.2).
        let own = self.etag.trim_start_matches("W/");
        let is_own = |tag: &str| tag == "*" || tag.trim_start_matches("W/") == own;
        if items(request, &IF_NONE_MATCH).any(is_own) {
            return (StatusCode::NOT_MODIFIED, validator).into_response();
        }
        let gzip = self
            .gzip
            .as_ref()
            .filter(|_| lists(request, &ACCEPT_ENCODING, "gzip"));
        let encoding = gzip.map(|_| [(CONTENT_ENCODING, "gzip")]);
        let content_type = [(CONTENT_TYPE, self.content_type)];
        let body = gzip.unwrap_or(&self.plain).clone();
        (validator, encoding, content_type, body).into_response()
    }
}

fn compressed(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    encoder.finish()
}
