//! Serves a folder: `serve ROOT [ADDR]`. Prints the address once it listens; ends on Ctrl-C.
//!
//! `longshore registry serve` is the real thing; this is the crate alone, and what the kill tests kill.

#![allow(clippy::print_stdout, reason = "a program of its own")]

use std::net::{Ipv4Addr, SocketAddr};

use registry_server::{Config, Server};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let root = args.next().ok_or("usage: serve ROOT [ADDR]")?;
    let addr = match args.next() {
        Some(addr) => addr.parse()?,
        None => SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
    };
    let server = Server::bind(addr, Config::new(root)).await?;
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
