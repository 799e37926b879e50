//! The pages of `/docs`: Swagger UI, to read and try the API, and what each code of a problem means. All of it is in the
//! binary; the pages ask nobody but this instance.

use std::sync::{Arc, LazyLock};

use axum::{
    body::{Body, Bytes},
    http::{
        HeaderValue, Uri,
        header::{
            CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE,
            REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
        },
    },
    response::{Response, Result},
};
use utoipa_swagger_ui::Config;

use crate::problem::{Code, Problem};

const HTML: &str = "text/html; charset=utf-8";
const PAGE: &str = include_str!("../../openapi/docs.html");
const SCRIPT: &str = include_str!("../../openapi/docs.js");
const STYLE: &str = include_str!("../../openapi/docs.css");

/// What pages may load: files and answers of this instance. Swagger UI draws its icons from `data:`.
const POLICY: &str = "default-src 'none'; connect-src 'self'; img-src 'self' data:; script-src 'self'; style-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// `GET /docs`: the page to read and try the API.
pub(super) async fn show() -> Response {
    file(HTML, PAGE)
}

/// `GET /docs/problems`: what each code of a problem means; where the `type` of a problem points.
pub(super) async fn show_problems() -> Response {
    static PROBLEMS: LazyLock<String> = LazyLock::new(problems);
    file(HTML, PROBLEMS.as_str())
}

/// `GET /docs/{*file}`: what the pages load.
pub(super) async fn show_file(uri: Uri) -> Result<Response> {
    Ok(match uri.path() {
        "/docs/docs.js" => file("text/javascript", SCRIPT),
        "/docs/docs.css" => file("text/css", STYLE),
        "/docs/swagger-ui-bundle.js" => swagger_ui("swagger-ui-bundle.js")?,
        "/docs/swagger-ui.css" => swagger_ui("swagger-ui.css")?,
        _ => return Err(Problem::new(Code::NotFound, "no such file").into()),
    })
}

/// A file of Swagger UI, which every browser takes compressed.
fn swagger_ui(name: &str) -> Result<Response, Problem> {
    let Ok(Some(found)) = utoipa_swagger_ui::serve(name, Arc::new(Config::default())) else {
        let detail = "a file of Swagger UI is missing";
        return Err(Problem::new(Code::Internal, detail));
    };
    let content_type = if name.ends_with(".css") {
        "text/css"
    } else {
        "text/javascript"
    };
    let mut response = file(content_type, Bytes::copy_from_slice(&found.bytes));
    let headers = response.headers_mut();
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("max-age=3600"));
    Ok(response)
}

fn file(content_type: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    with_policy(response)
}

/// `response` with the headers that a file of a page has.
pub(super) fn with_policy(mut response: Response) -> Response {
    response.headers_mut().extend(
        [
            (CONTENT_SECURITY_POLICY, POLICY),
            (REFERRER_POLICY, "no-referrer"),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        ]
        .map(|(name, value)| (name, HeaderValue::from_static(value))),
    );
    response
}

/// The table of codes as a page.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_of_problems_has_a_row_for_each_code() {
        let page = problems();
        for code in Code::ALL {
            assert!(page.contains(&format!("<tr id=\"{code}\">")), "{code}");
            assert!(code.meaning().ends_with('.'), "{code}");
        }
        // The meanings stand in it as they are.
        assert!(
            !Code::ALL
                .iter()
                .any(|code| code.meaning().contains(['<', '>', '&']))
        );
    }
}
