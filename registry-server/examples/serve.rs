//! Serves a folder or a bucket: `serve ROOT [ADDR]`, `serve s3:ENDPOINT [ADDR]`. Prints the address once it listens; ends on Ctrl-C.
//!
//! `longshore registry serve` is the real thing; this is the crate alone, and what the kill tests kill. The bucket is `images`, of a
//! server that wants no signatures.

#![allow(clippy::print_stdout, reason = "a program of its own")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use registry_client::{BucketOptions, Client, Options};
use registry_server::storage::objects::ObjectStorage;
use registry_server::{Config, Server};
use tokio::runtime::Handle;

type Failure = Box<dyn std::error::Error>;

async fn bucket(endpoint: &str) -> Result<ObjectStorage, Failure> {
    let client = Client::new(Options::default())?;
    let options = BucketOptions {
        bucket: "images".to_owned(),
        region: None,
        endpoint: Some(endpoint.to_owned()),
        credentials: None,
        path_style: true,
    };
    let bucket = client.bucket(&options).await?;
    let open = move || ObjectStorage::open(bucket.store(), "", Handle::current());
    Ok(tokio::task::spawn_blocking(open).await??)
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let root = args.next().ok_or("usage: serve ROOT|s3:ENDPOINT [ADDR]")?;
    let addr = match args.next() {
        Some(addr) => addr.parse()?,
        None => SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
    };
    let server = match root.strip_prefix("s3:") {
        Some(endpoint) => {
            let storage = Arc::new(bucket(endpoint).await?);
            Server::bind_with(addr, Config::new(""), storage).await?
        }
        None => Server::bind(addr, Config::new(root)).await?,
    };
    println!("{}", server.local_addr());
    let interrupted = async {
        if tokio::signal::ctrl_c().await.is_err() {
            // Without a signal there is nothing to wait for but the end of the process.
            std::future::pending::<()>().await;
        }
    };
    server.run(interrupted).await?;
    Ok(())
}
