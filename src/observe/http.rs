//! `[http] listen`: `/metrics`, `/healthz`, `/readyz` and `/status`, for machines and for `tidegate status`.
//!
//! Read-only and small on purpose: no request changes anything, bodies are not read, connections are few and short.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tracing::debug;

use super::metrics::{self, Metrics};
use super::pulse::STUCK_AFTER;
use super::status::Sources;
use crate::stop::Stop;

/// Connections at a time; a scraper, a health probe, an operator and some spare. Each costs about 20 KB.
const MAX_CONNECTIONS: usize = 16;

/// A request must have come, and its answer have left, within this.
const CONNECTION_TIME: Duration = Duration::from_secs(30);

/// Serves until stopped.
pub(crate) async fn serve(listener: TcpListener, sources: Arc<Sources>, mut stop: Stop) {
    let pages = Arc::new(Pages { metrics: Metrics::new(Arc::clone(&sources)), sources });
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.wait() => break,
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((socket, _)) => {
                    connections.spawn(connection(socket, Arc::clone(&pages)));
                }
                Err(error) => {
                    debug!(%error, "http: accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(socket: TcpStream, pages: Arc<Pages>) {
    let answer = service_fn(move |request: Request<Incoming>| {
        let response = pages.answer(request.method(), request.uri().path());
        async move { Ok::<_, Infallible>(response) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(CONNECTION_TIME)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(socket), answer);
    match tokio::time::timeout(CONNECTION_TIME, serving).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "http: connection"),
        Err(_) => debug!("http: connection took too long"),
    }
}

struct Pages {
    metrics: Metrics,
    sources: Arc<Sources>,
}

impl Pages {
    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        if method != Method::GET && method != Method::HEAD {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are allowed\n".to_owned());
        }
        match path {
            "/metrics" => match self.metrics.text() {
                Ok(body) => page(StatusCode::OK, metrics::CONTENT_TYPE, body),
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("metrics: {error}\n")),
            },
            "/healthz" => match self.sources.stuck(STUCK_AFTER) {
                None => text(StatusCode::OK, "ok\n".to_owned()),
                Some(stage) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{stage} is stuck\n")),
            },
            "/readyz" => match self.sources.not_ready() {
                None => text(StatusCode::OK, "ok\n".to_owned()),
                Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
            },
            "/status" => match serde_json::to_string_pretty(&self.sources.snapshot()) {
                Ok(body) => page(StatusCode::OK, "application/json", body),
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("status: {error}\n")),
            },
            "/" => text(
                StatusCode::OK,
                format!("{}\n\n/status /metrics /healthz /readyz\n", self.sources.snapshot().one_line()),
            ),
            _ => text(StatusCode::NOT_FOUND, "the pages are /status /metrics /healthz /readyz\n".to_owned()),
        }
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    page(status, "text/plain; charset=utf-8", body)
}

fn page(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
