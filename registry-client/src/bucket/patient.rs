//! Connections to a bucket that do not wait for ever: not for an answer, nor for the next bytes of one.
//!
//! `object_store` leaves that to whoever makes the connections. A peer that was killed closes them; one that was cut off
//! says nothing.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use hyper::body::{Body, Frame, SizeHint};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService,
};
use tokio::time::{Instant, Sleep};

use crate::Timeouts;

/// How long is waited for a small answer, if the transport waits no shorter. Well below the time for which requests are sent again,
/// so that they are, over another connection.
const ANSWER: Duration = Duration::from_secs(20);

/// A body that goes slower than this is not waited for.
const BYTES_PER_SECOND: u64 = 64 * 1024;

/// What a request copies on the server, which takes as long as it takes.
const COPY_SOURCE: &str = "x-amz-copy-source";

/// Gives out the transport's own connections.
#[derive(Clone, Debug)]
pub(super) struct OwnConnections {
    pub(super) connections: reqwest::Client,
    pub(super) timeouts: Timeouts,
}

impl HttpConnector for OwnConnections {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

impl OwnConnections {
    /// How long is waited for the head of the answer, from the first byte of the request.
    fn patience(&self, request: &HttpRequest) -> Duration {
        // An object is made of its parts before there is an answer.
        if request.method() == Method::POST || request.headers().contains_key(COPY_SOURCE) {
            return self.timeouts.answer;
        }
        let sending = request.body().content_length() as u64 / BYTES_PER_SECOND;
        ANSWER.min(self.timeouts.idle) + Duration::from_secs(sending)
    }
}

type Answer<'a> = Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'a>>;

impl HttpService for OwnConnections {
    fn call<'a, 'b>(&'a self, request: HttpRequest) -> Answer<'b>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            let patience = self.patience(&request);
            let asked = HttpService::call(&self.connections, request);
            let answer = tokio::time::timeout(patience, asked).await;
            let (head, body) = answer.map_err(|_| silent(patience))??.into_parts();
            let body = Watched::new(body, self.timeouts.idle);
            Ok(HttpResponse::from_parts(head, HttpResponseBody::new(body)))
        })
    }
}

fn silent(patience: Duration) -> HttpError {
    let text = format!("nothing came for {} s", patience.as_secs_f32());
    let error = io::Error::new(io::ErrorKind::TimedOut, text);
    HttpError::new(HttpErrorKind::Timeout, error)
}

/// A body whose next bytes are not waited for longer than this.
struct Watched {
    body: HttpResponseBody,
    idle: Duration,
    until: Pin<Box<Sleep>>,
    /// Whether it is the peer that is waited for.
    waiting: bool,
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watched").field(&self.body).finish()
    }
}

impl Watched {
    fn new(body: HttpResponseBody, idle: Duration) -> Watched {
        Watched {
            body,
            idle,
            until: Box::pin(tokio::time::sleep(idle)),
            waiting: false,
        }
    }
}

impl Body for Watched {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            this.waiting = false;
            return Poll::Ready(frame);
        }
        // Counted from here: the reader may have taken its time.
        if !this.waiting {
            this.waiting = true;
            this.until.as_mut().reset(Instant::now() + this.idle);
        }
        ready!(this.until.as_mut().poll(context));
        Poll::Ready(Some(Err(silent(this.idle))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
