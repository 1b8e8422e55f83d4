//! Digests of secrets, which tell nothing to who does not have this store's own key.
//!
//! `secret.key` is 32 random bytes, mode 0600, made when they are first asked for. The digest of a content is its HMAC-SHA256: the same
//! content has the same digest in this store, and without the key a guess cannot be tried.

use std::os::unix::fs::PermissionsExt;

use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};

use crate::fs::{self, attempt};
use crate::{Store, StoreError};

const KEY_BYTES: usize = 32;

impl Store {
    /// The digest of a secret's content, by the key of this store.
    ///
    /// # Errors
    /// The key cannot be read or made.
    pub fn secret_digest(&self, content: &[u8]) -> Result<[u8; 32], StoreError> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.secret_key()?);
        let mut digest = [0; 32];
        digest.copy_from_slice(hmac::sign(&key, content).as_ref());
        Ok(digest)
    }

    fn secret_key(&self) -> Result<Vec<u8>, StoreError> {
        let path = self.root.join("secret.key");
        loop {
            let found = fs::optional(fs::read(&path, 1024))?;
            if let Some(key) = found.as_ref().filter(|key| key.len() == KEY_BYTES) {
                return Ok(key.clone());
            }
            if found.is_some() {
                // Torn by a crash of the machine: what was keyed by it is only not found again.
                fs::remove_file(&path)?;
            }
            let mut key = vec![0; KEY_BYTES];
            attempt("make", &path, || {
                let random = SystemRandom::new().fill(&mut key);
                random.map_err(|_| std::io::Error::other("no random bytes to be had"))
            })?;
            let new = self.temp_dir()?;
            let file = new.path().join("key");
            attempt("write", &file, || std::fs::write(&file, &key))?;
            attempt("chmod", &file, || {
                std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600))
            })?;
            // Another process may be quicker; its key is everybody's then.
            fs::rename_if_free(&file, &path)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::store;

    #[test]
    fn digests_are_the_same_in_one_store_only() {
        let (dir, store) = store();
        let digest = store.secret_digest(b"hush").unwrap();
        assert_eq!(store.secret_digest(b"hush").unwrap(), digest);
        assert_ne!(store.secret_digest(b"hushh").unwrap(), digest);
        let again = Store::open(dir.path()).unwrap();
        assert_eq!(again.secret_digest(b"hush").unwrap(), digest);
        let path = dir.path().join("secret.key");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let (_other_dir, other) = crate::tests::store();
        assert_ne!(other.secret_digest(b"hush").unwrap(), digest);
        std::fs::write(&path, "torn").unwrap();
        assert_ne!(store.secret_digest(b"hush").unwrap(), digest);
    }
}
