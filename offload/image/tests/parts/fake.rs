//! A registry of our own, for what a real one does not do: count, lie, break off,
//! ask for tokens, wait.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use super::image::Layout;

pub struct Fake {
    pub address: String,
    asked: Arc<Mutex<Vec<String>>>,
}

pub struct Request {
    pub path: String,
    pub headers: BTreeMap<String, String>,
}

pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// What the header says, where it does not say the truth.
    pub announced: Option<usize>,
}

pub fn answer(status: u16, body: impl Into<Vec<u8>>) -> Answer {
    Answer {
        status,
        headers: Vec::new(),
        body: body.into(),
        announced: None,
    }
}

impl Fake {
    /// Serves on a loopback port until the test's process ends.
    pub fn start(handle: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let handle = Arc::new(handle);
        let log = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (handle, log) = (Arc::clone(&handle), Arc::clone(&log));
                std::thread::spawn(move || serve(&stream.unwrap(), &*handle, &log));
            }
        });
        Self { address, asked }
    }

    /// Serves the manifests and blobs of a layout, with `change` for what is to be
    /// different.
    pub fn serving(
        layout: &Layout,
        change: impl Fn(&Request) -> Option<Answer> + Send + Sync + 'static,
    ) -> Self {
        let root = layout.path();
        let manifest = layout.manifest().0;
        Self::start(move |request| {
            if let Some(answer) = change(request) {
                return answer;
            }
            let name = request.path.rsplit('/').next().unwrap();
            let digest = if name == "v1" { &manifest } else { name };
            let hex = digest.trim_start_matches("sha256:");
            match std::fs::read(root.join("blobs/sha256").join(hex)) {
                Ok(bytes) => answer(200, bytes),
                Err(_) => answer(404, "{}"),
            }
        })
    }

    pub fn reference(&self) -> String {
        format!("{}/team/app:v1", self.address)
    }

    /// How often a path with this in it was asked for.
    pub fn count(&self, part: &str) -> usize {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|path| path.contains(part)).count()
    }
}

fn serve(stream: &TcpStream, handle: &dyn Fn(&Request) -> Answer, log: &Mutex<Vec<String>>) {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let path = first.split(' ').nth(1).unwrap().to_owned();
    let headers = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| {
            let (name, value) = line.split_once(": ")?;
            Some((name.to_ascii_lowercase(), value.to_owned()))
        })
        .collect();
    log.lock().unwrap().push(path.clone());
    let answer = handle(&Request { path, headers });
    let mut head = format!(
        "HTTP/1.1 {} Text\r\nconnection: close\r\ncontent-length: {}\r\n",
        answer.status,
        answer.announced.unwrap_or(answer.body.len())
    );
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let mut stream = stream;
    // Whoever gives up early may.
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(b"\r\n");
    let _ = stream.write_all(&answer.body);
}
