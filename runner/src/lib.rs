//! One process in one sandbox. Knows no images.
