//! Of each library's error, whose fault it is and what to do about it: the one table.

use store::StoreError;
use store::images::ImageError;
use store::oci::ReferenceError;

use super::{CliError, Kind};

impl From<ReferenceError> for CliError {
    fn from(error: ReferenceError) -> CliError {
        CliError::new(Kind::Input, error)
    }
}

impl From<ImageError> for CliError {
    fn from(error: ImageError) -> CliError {
        let kind = match error {
            ImageError::Missing { .. }
            | ImageError::Ambiguous { .. }
            | ImageError::SeveralNames { .. }
            | ImageError::BadConfig { .. }
            | ImageError::BadManifest { .. }
            | ImageError::ConfigTooLarge { .. } => Kind::Input,
            _ => Kind::Environment,
        };
        CliError::new(kind, error)
    }
}

impl From<StoreError> for CliError {
    fn from(error: StoreError) -> CliError {
        match error {
            StoreError::Image(error) => error.into(),
            error => CliError::new(Kind::Environment, error),
        }
    }
}
