//! `--s3` of `registry` commands: a registry in a bucket.

use builder::request::cache::BucketSettings;
use registry_client::{BucketOptions, Client};
use registry_server::storage::StorageError;
use registry_server::storage::objects::ObjectStorage;
use tokio::runtime::Runtime;

use crate::context::Context;
use crate::error::{Blame, CliError, Kind};

/// Opens the registry in the bucket that `text` names; what it does not say comes from `AWS_…` variables. With `redirect`
/// clients are sent to the bucket for blobs.
pub fn open(
    context: &Context,
    runtime: &Runtime,
    text: &str,
    redirect: bool,
) -> Result<ObjectStorage, CliError> {
    let variables = |name: &str| context.text_variable(name);
    let settings = BucketSettings::parse("--s3", text, &variables).blame(Kind::Usage)?;
    let secret = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let credentials = match (&settings.access_key_id, &settings.secret_access_key) {
        (Some(id), Some(key)) => {
            let token = settings.session_token.as_ref();
            Some((
                id.clone(),
                secret(&key.0),
                token.map(|token| secret(&token.0)),
            ))
        }
        _ => None,
    };
    if redirect && credentials.is_none() {
        let message = "clients can only be sent to a bucket with URLs that are signed";
        return Err(CliError::new(Kind::Usage, message)
            .hint("give access_key_id and secret_access_key, or their AWS_… variables"));
    }
    let options = BucketOptions {
        bucket: settings.bucket,
        region: settings.region,
        endpoint: settings.endpoint_url,
        credentials,
        path_style: settings.use_path_style,
    };
    let client = Client::new(context.client_options()?).blame(Kind::Environment)?;
    let bucket = runtime
        .block_on(client.bucket(&options))
        .blame(Kind::Environment)?;
    let opened = ObjectStorage::open(bucket.store(), &settings.prefix, runtime.handle().clone());
    let opened = opened.map(|storage| match redirect {
        true => storage.redirecting(bucket.signer()),
        false => storage,
    });
    opened.map_err(|error: StorageError| {
        CliError::new(Kind::Environment, error)
            .hint("see whether bucket, endpoint_url and credentials are right")
    })
}
