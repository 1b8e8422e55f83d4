//! A tiny HTTP/1.1 client that sends exactly what a test says, right or wrong.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use store::oci::Digest;

/// One connection.
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
    addr: SocketAddr,
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// The error code of the envelope.
    pub(crate) fn code(&self) -> String {
        self.json()["errors"][0]["code"]
            .as_str()
            .unwrap_or_else(|| panic!("no error: {}", self.text()))
            .to_owned()
    }

    /// Fails unless the status is this one.
    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Reply {
        assert_eq!(self.status, status, "{:?} {}", self.headers, self.text());
        self
    }

    /// Fails unless status and error code are these.
    #[track_caller]
    pub(crate) fn refused(self, status: u16, code: &str) -> Reply {
        assert_eq!(
            (self.status, self.code().as_str()),
            (status, code),
            "{}",
            self.text()
        );
        self
    }

    #[track_caller]
    pub(crate) fn location(&self) -> String {
        self.header("location").expect("a Location").to_owned()
    }
}

impl Client {
    pub(crate) fn new(addr: SocketAddr) -> Client {
        Client::try_new(addr).expect("the server listens")
    }

    /// `None` if nobody listens.
    pub(crate) fn try_new(addr: SocketAddr) -> Option<Client> {
        let stream = TcpStream::connect(addr).ok()?;
        // A head and its body go out at once, though they are written one after the other.
        stream.set_nodelay(true).unwrap();
        // Nothing here takes long; a test that hangs should say where.
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        Some(Client {
            stream: BufReader::new(stream),
            addr,
        })
    }

    /// One that waits this long for each answer.
    pub(crate) fn patient(addr: SocketAddr, patience: Duration) -> Client {
        let client = Client::new(addr);
        let stream = client.stream.get_ref();
        stream.set_read_timeout(Some(patience)).unwrap();
        client
    }

    /// Pushes an image of nothing as a user whose password is their name; returns its digest.
    pub(crate) fn push_as(&mut self, user: &str, name: &str) -> Digest {
        let authorization = crate::policy::basic(user, user);
        let mut send = |method: &str, target: &str, body: &[u8]| {
            crate::policy::send(self, &authorization, method, target, body).expect(201);
        };
        let config = Digest::of(b"{}");
        let uploads = format!("/v2/{name}/blobs/uploads/?digest={config}");
        send("POST", &uploads, b"{}");
        let manifest = crate::protocol::manifest_of(&config, &[]);
        send("PUT", &format!("/v2/{name}/manifests/t"), &manifest);
        Digest::of(&manifest)
    }

    /// Sends bytes as they are.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).unwrap();
    }

    /// Sends no more, but still reads.
    pub(crate) fn finish_writing(&mut self) {
        let stream = self.stream.get_mut();
        // A server that has hung up already is no surprise here.
        let _ = stream.shutdown(std::net::Shutdown::Write);
    }

    /// Sends no more, and waits until the server has hung up.
    pub(crate) fn finish(mut self) {
        self.finish_writing();
        self.until_closed();
    }

    /// Waits until the server closes the connection; returns what it still sent.
    pub(crate) fn until_closed(mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        // A reset is an end, too.
        let _ = self.stream.read_to_end(&mut rest);
        rest
    }

    /// Whether something was answered, or the connection closed, within a time.
    pub(crate) fn is_answered(&mut self, within: Duration) -> bool {
        let patient = self.stream.get_ref().read_timeout().unwrap();
        self.stream
            .get_ref()
            .set_read_timeout(Some(within))
            .unwrap();
        let answered = self.stream.fill_buf().is_ok();
        self.stream.get_ref().set_read_timeout(patient).unwrap();
        answered
    }

    /// The connection itself.
    pub(crate) fn into_stream(self) -> BufReader<TcpStream> {
        self.stream
    }

    /// A request's head, with `Host`.
    pub(crate) fn head(&self, method: &str, target: &str, headers: &[(&str, &str)]) -> String {
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: {}\r\n", self.addr);
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        head
    }

    /// A whole request with `Content-Length` and its answer.
    pub(crate) fn send(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Reply {
        let length = body.len().to_string();
        let mut all = headers.to_vec();
        if !body.is_empty() || matches!(method, "POST" | "PUT" | "PATCH") {
            all.push(("Content-Length", &length));
        }
        let head = self.head(method, target, &all);
        self.raw(head.as_bytes());
        self.raw(body);
        self.read(method)
    }

    /// The same, for servers that may die: `None` if there is no answer.
    pub(crate) fn try_send(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Option<Reply> {
        let length = body.len().to_string();
        let mut all = headers.to_vec();
        all.push(("Content-Length", &length));
        let head = self.head(method, target, &all);
        self.stream.get_mut().write_all(head.as_bytes()).ok()?;
        self.stream.get_mut().write_all(body).ok()?;
        let arrived = self.stream.fill_buf().is_ok_and(|bytes| !bytes.is_empty());
        arrived.then(|| self.read(method))
    }

    pub(crate) fn get(&mut self, target: &str) -> Reply {
        self.send("GET", target, &[], b"")
    }

    pub(crate) fn head_of(&mut self, target: &str) -> Reply {
        self.send("HEAD", target, &[], b"")
    }

    pub(crate) fn post(&mut self, target: &str) -> Reply {
        self.send("POST", target, &[], b"")
    }

    pub(crate) fn put(&mut self, target: &str, body: &[u8]) -> Reply {
        self.send("PUT", target, &[], body)
    }

    pub(crate) fn delete(&mut self, target: &str) -> Reply {
        self.send("DELETE", target, &[], b"")
    }

    /// A request whose body goes out in HTTP chunks.
    pub(crate) fn stream(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        pieces: &[&[u8]],
    ) -> Reply {
        let mut all = headers.to_vec();
        all.push(("Transfer-Encoding", "chunked"));
        let head = self.head(method, target, &all);
        self.raw(head.as_bytes());
        for piece in pieces {
            self.raw(format!("{:x}\r\n", piece.len()).as_bytes());
            self.raw(piece);
            self.raw(b"\r\n");
        }
        self.raw(b"0\r\n\r\n");
        self.read(method)
    }

    /// Reads an answer up to its body.
    pub(crate) fn read_head(&mut self) -> Reply {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        let status: u16 = line
            .split(' ')
            .nth(1)
            .and_then(|text| text.parse().ok())
            .unwrap_or_else(|| panic!("not a status line: {line:?}"));
        let mut reply = Reply {
            status,
            headers: Vec::new(),
            body: Vec::new(),
        };
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line).unwrap();
            let Some((name, value)) = line.trim_end().split_once(':') else {
                break;
            };
            reply
                .headers
                .push((name.to_owned(), value.trim().to_owned()));
        }
        match status {
            100 => self.read_head(),
            _ => reply,
        }
    }

    /// Reads so many bytes of a body.
    pub(crate) fn read_bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Reads one answer.
    pub(crate) fn read(&mut self, method: &str) -> Reply {
        let mut reply = self.read_head();
        let status = reply.status;
        let length = reply.header("content-length").map(|n| n.parse().unwrap());
        match length {
            _ if method == "HEAD" || matches!(status, 204 | 304) => {}
            Some(length) => {
                reply.body = vec![0; length];
                self.stream.read_exact(&mut reply.body).unwrap();
            }
            None => panic!("an answer without Content-Length: {:?}", reply.headers),
        }
        reply
    }

    /// Pushes a blob by POST and PUT.
    #[track_caller]
    pub(crate) fn push_blob(&mut self, name: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let location = self
            .post(&format!("/v2/{name}/blobs/uploads/"))
            .expect(202)
            .location();
        self.put(&format!("{location}?digest={digest}"), bytes)
            .expect(201);
        digest
    }

    /// Puts a manifest.
    pub(crate) fn put_manifest(
        &mut self,
        name: &str,
        reference: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> Reply {
        self.send(
            "PUT",
            &format!("/v2/{name}/manifests/{reference}"),
            &[("Content-Type", media_type)],
            bytes,
        )
    }
}

/// Bytes that look random and are the same every time.
pub(crate) fn noise(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        bytes.extend(next().to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}
