//! `--compression` and what goes with it, for commands that send layers.

use clap::Args;
use store::layer::compress::{Compression, CompressionChoice, CompressionError};

/// How layers are compressed.
#[derive(Args, Clone, Debug, Default)]
pub struct CompressionArgs {
    /// Send layers compressed so: gzip, zstd, zstd:chunked, estargz or none [default: as they are, new ones gzip]
    #[arg(
        long,
        value_name = "KIND",
        visible_aliases = ["compression-format", "dest-compress-format"]
    )]
    pub compression: Option<Compression>,
    /// How hard: 1 to 12 for gzip and estargz, 1 to 22 for the others
    #[arg(
        long,
        value_name = "LEVEL",
        requires = "compression",
        visible_alias = "dest-compress-level"
    )]
    pub compression_level: Option<u8>,
}

impl CompressionArgs {
    /// The compression with its level, if one was asked for.
    pub fn compression(&self) -> Result<Option<Compression>, CompressionError> {
        match (self.compression, self.compression_level) {
            (Some(compression), Some(level)) => compression.at_level(level).map(Some),
            (compression, _) => Ok(compression),
        }
    }

    /// What is chosen for an image of the store.
    pub fn choice(&self, force: bool) -> Result<CompressionChoice, CompressionError> {
        Ok(match self.compression()? {
            Some(compression) => CompressionChoice { compression, force },
            None => CompressionChoice::AS_THEY_ARE,
        })
    }
}
