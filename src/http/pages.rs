//! The pages: `/docs`, Swagger UI, to read and try the API; `/docs/problems`, what each code of a problem means; `/ui`,
//! the cluster as it is and calls as they end. Their files are in the binary, and ask nobody but the instance that served
//! them.

use std::sync::{Arc, LazyLock};

use axum::{
    http::{
        HeaderMap, Uri,
        header::{
            CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE,
            REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
        },
    },
    response::{IntoResponse, Response, Result},
};
use utoipa_swagger_ui::Config;

use super::served::Document;
use crate::problem::{Code, Problem};

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript";
const STYLE: &str = "text/css";

/// What pages may load: files and answers of this instance. Swagger UI draws its icons from `data:`.
const POLICY: &str = "default-src 'none'; connect-src 'self'; img-src 'self' data:; script-src 'self'; style-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The path of each file, and the file.
static FILES: LazyLock<Vec<(&str, Document)>> = LazyLock::new(|| {
    let file = |path, content_type, text: &'static str| (path, Document::new(content_type, text));
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
        ("/docs/problems", Document::new(HTML, problems())),
        file("/ui", HTML, include_str!("ui/index.html")),
        file("/ui/ui.css", STYLE, include_str!("ui/ui.css")),
        file("/ui/ui.js", SCRIPT, include_str!("ui/ui.js")),
        file("/ui/api.js", SCRIPT, include_str!("ui/api.js")),
        file("/ui/call.js", SCRIPT, include_str!("ui/call.js")),
        file("/ui/dev.js", SCRIPT, include_str!("ui/dev.js")),
        file("/ui/dom.js", SCRIPT, include_str!("ui/dom.js")),
        file("/ui/land.js", SCRIPT, include_str!("ui/land.js")),
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
            let meaning = code.meaning();
            assert!(page.contains(&format!("<tr id=\"{code}\">")), "{code}");
            assert!(meaning.ends_with('.'), "{code}");
            // It stands in the page as it is.
            assert!(!meaning.contains(['<', '>', '&']), "{code}");
        }
    }
}
