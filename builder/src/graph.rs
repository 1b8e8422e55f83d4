//! The build graph: content-addressed operations in dependency order.
//!
//! A [`Definition`] is what a Dockerfile lowers to and what the solver solves. A vertex's digest covers its operation
//! and its inputs' digests and nothing else: [`OpMetadata`] is for people and never enters it. It identifies the vertex
//! inside one solve; the key that outlives a build is derived in `cache.rs`.

pub mod exec;
pub mod mode;
pub mod op;

pub use exec::ExecOp;
pub use mode::ModeChange;
pub use op::{
    ChownSpec, ContextOp, CopyAction, CopySource, Document, FileAction, FileOp, GitOp, HttpOp,
    ImageOp, MkdirAction, Op,
};

use std::fmt;

/// Version of the encoding below; a change of meaning gets a new one, so that no digest is ever mistaken.
const DOMAIN: &[u8] = b"longshore vertex 1";

/// Position of a vertex in its [`Definition`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VertexIndex(pub usize);

/// BLAKE3 digest of an operation and of its inputs' digests.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VertexDigest(pub [u8; 32]);

impl fmt::Debug for VertexDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", blake3::Hash::from_bytes(self.0).to_hex())
    }
}

/// One step.
#[derive(Clone, Debug)]
pub struct Vertex {
    /// What it does.
    pub op: Op,
    /// The vertices it reads, in the order that `op` counts them in.
    pub inputs: Vec<VertexIndex>,
    /// Identity inside one solve.
    pub digest: VertexDigest,
    /// What people are shown.
    pub meta: OpMetadata,
}

/// What is shown of a vertex; never part of a digest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpMetadata {
    /// Label in the field's form: `[stage 2/5] RUN make`.
    pub name: String,
    /// First line of the instruction in the Dockerfile, from 1; 0 where there is none.
    pub line: usize,
    /// Byte range of the instruction in the Dockerfile, for error messages.
    pub span: std::ops::Range<usize>,
    /// Run even if cached (`--no-cache`).
    pub no_cache: bool,
}

/// Vertices in dependency order: each stands after its inputs, and no two are alike.
#[derive(Clone, Debug, Default)]
pub struct Definition {
    vertices: Vec<Vertex>,
    by_digest: std::collections::BTreeMap<VertexDigest, VertexIndex>,
}

impl Definition {
    /// An empty definition.
    pub fn new() -> Definition {
        Definition::default()
    }

    /// Adds a vertex, or finds the one that already does the same with the same inputs.
    ///
    /// # Panics
    /// If an input is not in this definition: lowering adds inputs first.
    pub fn add(&mut self, op: Op, inputs: Vec<VertexIndex>, meta: OpMetadata) -> VertexIndex {
        let mut sink = op::Encoder::new(DOMAIN);
        op.encode(&mut sink);
        sink.list(inputs.len());
        for input in &inputs {
            sink.bytes(&self.vertices[input.0].digest.0);
        }
        let digest = VertexDigest(sink.finish());
        if let Some(&known) = self.by_digest.get(&digest) {
            return known;
        }
        let index = VertexIndex(self.vertices.len());
        self.vertices.push(Vertex {
            op,
            inputs,
            digest,
            meta,
        });
        self.by_digest.insert(digest, index);
        index
    }

    /// Takes in all of another definition, and tells where each of its vertices is now: what both have is here once.
    pub fn absorb(&mut self, other: Definition) -> Vec<VertexIndex> {
        let mut places: Vec<VertexIndex> = Vec::with_capacity(other.vertices.len());
        for mut vertex in other.vertices {
            if let Some(&known) = self.by_digest.get(&vertex.digest) {
                places.push(known);
                continue;
            }
            for input in &mut vertex.inputs {
                *input = places[input.0];
            }
            let index = VertexIndex(self.vertices.len());
            self.by_digest.insert(vertex.digest, index);
            self.vertices.push(vertex);
            places.push(index);
        }
        places
    }

    /// The vertices, inputs before users.
    pub fn vertices(&self) -> &[Vertex] {
        &self.vertices
    }

    /// One vertex.
    pub fn vertex(&self, index: VertexIndex) -> &Vertex {
        &self.vertices[index.0]
    }
}
