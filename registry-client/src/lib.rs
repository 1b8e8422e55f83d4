//! Pulls from and pushes to any OCI registry.
