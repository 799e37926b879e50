//! `GET /ui`: the page that shows the cluster as it is, and calls as they end. Its files are in the binary, in `ui/`; it
//! asks nobody but the instance that served it.

use std::sync::LazyLock;

use axum::{
    http::{HeaderMap, Uri},
    response::{Response, Result},
};

use super::{docs::with_policy, served::Document};
use crate::problem::{Code, Problem};

/// The path of each file, and the file.
static FILES: LazyLock<Vec<(&str, Document)>> = LazyLock::new(|| {
    let file = |path, content_type, text: &'static str| (path, Document::new(content_type, text));
    let script = |path, text| file(path, "text/javascript", text);
    vec![
        file(
            "/ui",
            "text/html; charset=utf-8",
            include_str!("ui/index.html"),
        ),
        file("/ui/ui.css", "text/css", include_str!("ui/ui.css")),
        script("/ui/ui.js", include_str!("ui/ui.js")),
        script("/ui/api.js", include_str!("ui/api.js")),
        script("/ui/call.js", include_str!("ui/call.js")),
        script("/ui/dev.js", include_str!("ui/dev.js")),
        script("/ui/dom.js", include_str!("ui/dom.js")),
        script("/ui/land.js", include_str!("ui/land.js")),
        script("/ui/map.js", include_str!("ui/map.js")),
        script("/ui/places.js", include_str!("ui/places.js")),
    ]
});

/// A file of the page, or the page itself.
pub(super) async fn show(uri: Uri, headers: HeaderMap) -> Result<Response> {
    let mut files = FILES.iter();
    let (_, document) = files
        .find(|(path, _)| *path == uri.path())
        .ok_or_else(|| Problem::new(Code::NotFound, "no such file"))?;
    Ok(with_policy(document.answer(&headers)))
}
