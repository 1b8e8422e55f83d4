//! An upstream whose answers are spans of the requests that wait for them.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use store::oci::{Descriptor, Digest};

use super::{Upstream, UpstreamBlob, UpstreamManifest, UpstreamResult};
use crate::trace::{Attribute, SpanKind, step};

/// Another one, watched.
#[derive(Debug)]
pub(super) struct Traced(pub(super) Arc<dyn Upstream>);

async fn ask<T>(
    what: &'static str,
    repository: &str,
    reference: String,
    question: impl Future<Output = UpstreamResult<T>>,
) -> UpstreamResult<T> {
    let attributes = || {
        let mut attributes = vec![(
            "registry.repository",
            Attribute::Text(repository.to_owned()),
        )];
        if !reference.is_empty() {
            attributes.push(("registry.reference", Attribute::Text(reference)));
        }
        (format!("upstream {what}"), attributes)
    };
    let failed = |answer: &UpstreamResult<T>| answer.as_ref().err().map(ToString::to_string);
    step(SpanKind::Client, attributes, failed, question).await
}

impl Upstream for Traced {
    fn manifest<'a>(
        &'a self,
        repository: &'a str,
        reference: &'a str,
    ) -> BoxFuture<'a, UpstreamResult<UpstreamManifest>> {
        let question = self.0.manifest(repository, reference);
        Box::pin(ask("manifest", repository, reference.to_owned(), question))
    }

    fn tag_now<'a>(
        &'a self,
        repository: &'a str,
        tag: &'a str,
        known: Digest,
    ) -> BoxFuture<'a, UpstreamResult<Option<Digest>>> {
        let question = self.0.tag_now(repository, tag, known);
        Box::pin(ask("tag", repository, tag.to_owned(), question))
    }

    fn blob_size<'a>(
        &'a self,
        repository: &'a str,
        digest: Digest,
    ) -> BoxFuture<'a, UpstreamResult<u64>> {
        let question = self.0.blob_size(repository, digest);
        Box::pin(ask("blob size", repository, digest.to_string(), question))
    }

    fn blob<'a>(
        &'a self,
        repository: &'a str,
        digest: Digest,
    ) -> BoxFuture<'a, UpstreamResult<UpstreamBlob>> {
        let question = self.0.blob(repository, digest);
        Box::pin(ask("blob", repository, digest.to_string(), question))
    }

    fn tags<'a>(&'a self, repository: &'a str) -> BoxFuture<'a, UpstreamResult<Vec<String>>> {
        let question = self.0.tags(repository);
        Box::pin(ask("tags", repository, String::new(), question))
    }

    fn repositories(&self) -> BoxFuture<'_, UpstreamResult<Vec<String>>> {
        Box::pin(ask(
            "repositories",
            "",
            String::new(),
            self.0.repositories(),
        ))
    }

    fn referrers<'a>(
        &'a self,
        repository: &'a str,
        subject: Digest,
    ) -> BoxFuture<'a, UpstreamResult<Vec<Descriptor>>> {
        let question = self.0.referrers(repository, subject);
        Box::pin(ask("referrers", repository, subject.to_string(), question))
    }
}
