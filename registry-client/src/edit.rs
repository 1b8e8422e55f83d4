//! Changing images without moving their layers: each operation makes a [`crate::copy::Tree`] of another one.

mod artifact;

pub use artifact::{Attachment, artifact, file_blob};

use store::oci::{Descriptor, ImageConfig, MediaType};

use crate::copy::{CopyError, Source};

/// Largest image configuration that is read, in bytes.
pub(crate) const CONFIG_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Whether a media type is that of an image's configuration.
pub fn is_image_config(media_type: &str) -> bool {
    matches!(media_type, MediaType::OCI_CONFIG | MediaType::DOCKER_CONFIG)
}

/// Reads an image's configuration.
pub async fn read_config(
    source: &Source,
    descriptor: &Descriptor,
) -> Result<ImageConfig, CopyError> {
    let bytes = source.read_small(descriptor, CONFIG_BYTES_MAX).await?;
    serde_json::from_slice(&bytes).map_err(|error| CopyError::Unfit {
        place: source.name(),
        reason: format!("its configuration is not valid: {error}"),
    })
}
