//! What the tests share: images, counted progress, a clock that does not wait.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use registry_client::{BlobSource, Clock, Options, Progress, PushImage, RetryPolicy, Timeouts};
use store::oci::{
    Descriptor, DiffId, Digest, ImageConfig, Manifest, MediaType, Platform, RawManifest,
};

/// A clock that notes its waits instead of waiting.
#[derive(Debug, Default)]
pub(crate) struct Waits(pub(crate) Mutex<Vec<Duration>>);

impl Clock for Waits {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn sleep(&self, time: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        self.0.lock().unwrap().push(time);
        Box::pin(std::future::ready(()))
    }

    fn random(&self) -> u8 {
        255
    }
}

/// Options under which nothing in a test waits long.
pub(crate) fn options() -> Options {
    Options {
        clock: Arc::new(Waits::default()),
        retry: RetryPolicy {
            attempts: 4,
            ..RetryPolicy::default()
        },
        timeouts: Timeouts {
            connect: Duration::from_secs(10),
            idle: Duration::from_secs(10),
            answer: Duration::from_secs(10),
        },
        ..Options::default()
    }
}

/// Adds up what it is told.
#[derive(Debug, Default)]
pub(crate) struct Counted(pub(crate) Mutex<BTreeMap<Digest, (u64, u64, bool)>>);

impl Counted {
    /// Bytes done of all, and whether it finished.
    pub(crate) fn of(&self, digest: Digest) -> Option<(u64, u64, bool)> {
        self.0.lock().unwrap().get(&digest).copied()
    }
}

impl Progress for Counted {
    fn started(&self, digest: &Digest, total: u64) {
        self.0.lock().unwrap().insert(*digest, (0, total, false));
    }

    fn advanced(&self, digest: &Digest, bytes: u64) {
        self.0.lock().unwrap().get_mut(digest).unwrap().0 += bytes;
    }

    fn rewound(&self, digest: &Digest, offset: u64) {
        self.0.lock().unwrap().get_mut(digest).unwrap().0 = offset;
    }

    fn finished(&self, digest: &Digest) {
        self.0.lock().unwrap().get_mut(digest).unwrap().2 = true;
    }
}

/// Reproducible numbers (SplitMix64).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }
}

/// Bytes that do not compress and differ by seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub(crate) fn amd64() -> Platform {
    Platform {
        architecture: "amd64".to_owned(),
        os: "linux".to_owned(),
        os_version: None,
        os_features: Vec::new(),
        variant: None,
    }
}

/// An image of these layers; that they are no tars matters to nobody here.
pub(crate) fn image(layers: &[Vec<u8>]) -> PushImage {
    let mut config = ImageConfig::scratch(&amd64());
    config.rootfs.diff_ids = layers
        .iter()
        .map(|bytes| DiffId(Digest::of(bytes)))
        .collect();
    let config = serde_json::to_vec(&config).unwrap();
    let mut blobs = vec![(
        Descriptor::of(MediaType::OCI_CONFIG, &config),
        BlobSource::Bytes(Bytes::from(config)),
    )];
    for layer in layers {
        blobs.push((
            Descriptor::of(MediaType::OCI_LAYER, layer),
            BlobSource::Bytes(Bytes::from(layer.clone())),
        ));
    }
    image_of(blobs)
}

/// An image of blobs, its configuration first.
pub(crate) fn image_of(blobs: Vec<(Descriptor, BlobSource)>) -> PushImage {
    let descriptors: Vec<Descriptor> = blobs.iter().map(|(d, _)| d.clone()).collect();
    let (config, layers) = descriptors.split_first().unwrap();
    PushImage {
        manifest: RawManifest::from(Manifest::image(config.clone(), layers.to_vec())),
        blobs,
        mount_from: Vec::new(),
    }
}

/// A proxy in front of `host` that cuts the first connection over which it carried `after` bytes towards the host. Its
/// address is a registry's name.
pub(crate) fn cut_once(host: &str, after: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let host = host.to_owned();
    let cut = Arc::new(AtomicBool::new(false));
    std::thread::spawn(move || {
        // It ends with the test process.
        for client in listener.incoming() {
            let (client, server) = (client.unwrap(), TcpStream::connect(&host).unwrap());
            let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            let cut = Arc::clone(&cut);
            std::thread::spawn(move || {
                let mut carried = 0;
                let mut buffer = vec![0; 64 * 1024];
                while let Ok(length) = from.read(&mut buffer) {
                    carried += length;
                    let ends = length == 0 || to.write_all(&buffer[..length]).is_err();
                    let cuts = carried >= after && !cut.swap(true, Ordering::SeqCst);
                    if ends || cuts {
                        break;
                    }
                }
                let _ = from.shutdown(Shutdown::Both);
                let _ = to.shutdown(Shutdown::Both);
            });
            std::thread::spawn(move || {
                let (mut from, mut to) = (server, client);
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Both);
            });
        }
    });
    address
}
