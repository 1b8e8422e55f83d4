//! The bundled OCI registry.
