//! A line that breaks where a seed says, in both directions, between the client and the bundled registry: pushes and
//! pulls end in the right bytes or in an error of the line, and a tag never names what is not there.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use registry_client::{Client, ErrorKind, Options, PullError, Silent, pull_layers, push_image};
use registry_server::RunningServer;
use store::oci::{Digest, Reference};

use crate::support::{Random, amd64, image, noise, options};

/// Connections of a run that break; later ones are sound, so that the end can be judged.
const FAULTS: usize = 12;

/// A proxy that breaks connections after seeded numbers of bytes.
struct Line {
    addr: SocketAddr,
    broken: Arc<AtomicUsize>,
}

impl Line {
    fn start(server: SocketAddr, seed: u64) -> Line {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let broken = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&broken);
        let random = Mutex::new(Random::new(seed));
        std::thread::spawn(move || {
            // It ends with the test process.
            for client in listener.incoming() {
                let client = client.unwrap();
                let Ok(server) = TcpStream::connect(server) else {
                    return;
                };
                let faulty = count.load(Ordering::SeqCst) < FAULTS;
                let mut limits = [usize::MAX; 2];
                if faulty {
                    let mut random = random.lock().unwrap();
                    limits[random.below(2)] = 1 << random.below(19);
                }
                let back = (server.try_clone().unwrap(), client.try_clone().unwrap());
                for ((from, to), limit) in [(client, server), back].into_iter().zip(limits) {
                    let count = Arc::clone(&count);
                    std::thread::spawn(move || carry(from, to, limit, &count));
                }
            }
        });
        Line { addr, broken }
    }
}

/// Carries bytes until either end closes, or `limit` of them.
fn carry(mut from: TcpStream, mut to: TcpStream, mut limit: usize, broken: &AtomicUsize) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(length) = from.read(&mut buffer) {
        if length == 0 || to.write_all(&buffer[..length.min(limit)]).is_err() {
            break;
        }
        if length >= limit {
            broken.fetch_add(1, Ordering::SeqCst);
            break;
        }
        limit -= length;
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

fn of_the_line(kind: ErrorKind) -> bool {
    // A registry may also say that it got half a request.
    matches!(
        kind,
        ErrorKind::Unreachable | ErrorKind::Protocol | ErrorKind::ServerFault
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_lines() {
    let server = RunningServer::start_in_memory().unwrap();
    let direct = Client::new(options()).unwrap();
    let (mut succeeded, mut broken) = (0, 0);
    for seed in 0..24 {
        let layers: Vec<Vec<u8>> = (0..3)
            .map(|at| noise(1000 + seed * 3 + at, 150_000))
            .collect();
        let pushed = image(&layers);
        let line = Line::start(server.addr, seed);
        let rough: Reference = format!("{}/chaos/{seed}:1", line.addr).parse().unwrap();
        let sound: Reference = format!("{}/chaos/{seed}:1", server.host()).parse().unwrap();
        let client = Client::new(Options {
            chunk_bytes: 40_000,
            ..options()
        })
        .unwrap();

        match push_image(&client, &rough, &pushed, Arc::new(Silent)).await {
            Ok(report) => {
                succeeded += 1;
                assert_eq!(report.digest, pushed.manifest.digest());
            }
            Err(error) => assert!(of_the_line(error.kind()), "seed {seed}: {error}"),
        }
        // Whatever happened: a tag that stands is whole.
        if direct.manifest(&sound).await.is_ok() {
            for (descriptor, _) in &pushed.blobs {
                direct
                    .read_small(&sound, descriptor, 1 << 20)
                    .await
                    .unwrap();
            }
        }
        // Pushing again makes it whole, and repeats nothing that is there.
        push_image(&direct, &sound, &pushed, Arc::new(Silent))
            .await
            .unwrap();

        let line = Line::start(server.addr, seed ^ 0xffff);
        let rough: Reference = format!("{}/chaos/{seed}:1", line.addr).parse().unwrap();
        match client.image(&rough, &amd64()).await {
            Err(error) => assert!(of_the_line(error.kind()), "seed {seed}: {error}"),
            Ok(remote) => {
                assert_eq!(remote.manifest.bytes(), pushed.manifest.bytes());
                let pulled = pull_layers(
                    &client,
                    &rough,
                    remote.layers(),
                    Arc::new(Silent),
                    |_, d, mut reader| {
                        let mut bytes = Vec::new();
                        reader.read_to_end(&mut bytes)?;
                        assert_eq!(Digest::of(&bytes), d.digest);
                        Ok::<_, std::io::Error>(bytes)
                    },
                );
                match pulled.await {
                    Ok(pulled) => {
                        succeeded += 1;
                        assert!(pulled == layers, "seed {seed}");
                    }
                    Err(PullError::Layer { source, .. }) => {
                        let inner = registry_client::BlobReader::client_error(&source).unwrap();
                        assert!(of_the_line(inner.kind()), "seed {seed}: {inner}");
                    }
                    Err(error) => panic!("seed {seed}: {error}"),
                }
            }
        }
        broken += line.broken.load(Ordering::SeqCst);
    }
    // The seeds are worth something only if lines broke and work got done nevertheless.
    assert!(broken > 60, "{broken}");
    assert!(succeeded > 12, "{succeeded}");
}
