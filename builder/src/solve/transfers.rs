//! Bytes on their way: what happens to them, and for which vertex.

use std::sync::Arc;

use super::{ProgressEvent, ProgressSink};
use crate::graph::VertexIndex;

/// What happens to the bytes of a [`ProgressEvent::Transfer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum TransferKind {
    /// From a registry.
    Pull,
    /// Out of a blob that is here, into a layer.
    Extract,
    /// Out of a layer, into a blob.
    Compress,
    /// To a registry.
    Push,
    /// From any other server.
    Download,
}

impl TransferKind {
    /// One word: `pulling`, `extracting`, `compressing`, `pushing`, `downloading`.
    pub fn as_str(self) -> &'static str {
        match self {
            TransferKind::Pull => "pulling",
            TransferKind::Extract => "extracting",
            TransferKind::Compress => "compressing",
            TransferKind::Push => "pushing",
            TransferKind::Download => "downloading",
        }
    }
}

/// A sink for work that is done for one vertex by those who do not know it: says so in each transfer's event.
pub(crate) struct OfVertex {
    inner: Arc<dyn ProgressSink>,
    vertex: VertexIndex,
}

impl OfVertex {
    /// A sink before `inner`.
    pub(crate) fn before(
        vertex: VertexIndex,
        inner: &Arc<dyn ProgressSink>,
    ) -> Arc<dyn ProgressSink> {
        let inner = Arc::clone(inner);
        Arc::new(OfVertex { inner, vertex })
    }
}

impl ProgressSink for OfVertex {
    fn event(&self, mut event: ProgressEvent) {
        if let ProgressEvent::Transfer { vertex, .. } = &mut event {
            vertex.get_or_insert(self.vertex);
        }
        self.inner.event(event);
    }
}
