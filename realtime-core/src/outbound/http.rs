//! One request over HTTP/1.1, with TLS where the URL says so.

use std::io;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::Uri;
use hyper::header::{self, HeaderValue};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{MAX_BODY_BYTES, MAX_HEAD_BYTES, MAX_HEADERS, OutboundError, Request, Response, path_and_query};
use crate::trust;

/// Whom to trust, made once.
#[derive(Clone)]
pub(crate) struct Tls(Option<TlsConnector>);

impl Tls {
    /// For requests that never go to an `https` address.
    pub(crate) fn none() -> Self {
        Tls(None)
    }

    /// Trusts the certificates of a file, or the system's where it is empty.
    pub(crate) fn new(ca_file: &str) -> Result<Self, String> {
        let config = trust::client(trust::roots(ca_file, "ca_file")?).map_err(|error| error.to_string())?;
        Ok(Tls(Some(TlsConnector::from(config))))
    }
}

pub(super) async fn send(uri: &Uri, tls: &Tls, request: Request) -> Result<Response, OutboundError> {
    let secure = uri.scheme_str() == Some("https");
    let host = uri.host().unwrap_or_default();
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let stream = TcpStream::connect((host.trim_start_matches('[').trim_end_matches(']'), port)).await.map_err(OutboundError::Connect)?;
    stream.set_nodelay(true)?;
    if !secure {
        return exchange(stream, uri, request).await;
    }
    let connector = tls.0.as_ref().ok_or_else(|| OutboundError::Connect(io::Error::other("no certificates were loaded")))?;
    let name = ServerName::try_from(host.to_owned()).map_err(|error| OutboundError::Connect(io::Error::other(error)))?;
    exchange(connector.connect(name, stream).await.map_err(OutboundError::Connect)?, uri, request).await
}

async fn exchange<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    stream: S,
    uri: &Uri,
    request: Request,
) -> Result<Response, OutboundError> {
    let mut builder = hyper::client::conn::http1::Builder::new();
    builder.max_buf_size(MAX_HEAD_BYTES).max_headers(MAX_HEADERS);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
    let mut outgoing = hyper::Request::new(Full::new(Bytes::from(request.body)));
    *outgoing.method_mut() = request.method;
    // The application's own name, whatever host the client asked for.
    *outgoing.headers_mut() = request.headers;
    let headers = outgoing.headers_mut();
    if let Some(authority) = uri.authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
        && let Some(asked) = headers.insert(header::HOST, host)
    {
        headers.insert("x-forwarded-host", asked);
    }
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    if let Some(client) = request.client
        && let Ok(client) = HeaderValue::from_str(&client.to_string())
    {
        headers.insert("x-forwarded-for", client);
    }
    *outgoing.uri_mut() = path_and_query(uri, &request.query).parse().unwrap_or_default();
    let answer = async {
        let response = sender.send_request(outgoing).await?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_BODY_BYTES).collect().await.map_err(|error| match error.downcast::<hyper::Error>() {
            Ok(error) => OutboundError::Http(*error),
            Err(error) if error.is::<LengthLimitError>() => OutboundError::TooLong { limit: MAX_BODY_BYTES },
            Err(error) => OutboundError::Io(io::Error::other(error)),
        })?;
        Ok(Response { status: head.status.as_u16(), headers: head.headers, body: body.to_bytes().into() })
    };
    // Both here, so that whoever drops this future drops the connection too.
    let mut connection = std::pin::pin!(connection);
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        ended = &mut connection => {
            ended?;
            answer.await
        }
    }
}
