//! A way to etcd that can be broken.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// How a link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It passes everything on.
    Whole,
    /// What is asked arrives; what is answered is lost.
    Deaf,
    /// Nothing passes, and what was connected is connected no more.
    Cut,
}

/// A proxy on the loopback address. It ends with this value.
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    state: watch::Sender<State>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Link {
    /// A whole link to `url` (`http://HOST:PORT`).
    ///
    /// # Panics
    /// Where there is no port to listen on.
    pub async fn to(url: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let target = url.strip_prefix("http://").unwrap().to_owned();
        let state = watch::Sender::new(State::Whole);
        let states = state.subscribe();
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if *states.borrow() == State::Cut {
                    continue;
                }
                let Ok(server) = TcpStream::connect(&target).await else {
                    continue;
                };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                tokio::spawn(pass(from_client, to_server, states.clone(), false));
                tokio::spawn(pass(from_server, to_client, states.clone(), true));
            }
        });
        Self {
            address,
            state,
            accepting,
        }
    }

    /// Where it is entered.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Makes it so.
    pub fn set(&self, state: State) {
        self.state.send_replace(state);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.state.send_replace(State::Cut);
        self.accepting.abort();
    }
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut states: watch::Receiver<State>,
    answers: bool,
) {
    let mut bytes = vec![0; 64 << 10];
    loop {
        let read = tokio::select! {
            read = from.read(&mut bytes) => read,
            _ = states.wait_for(|state| *state == State::Cut) => return,
        };
        let Ok(read @ 1..) = read else {
            return;
        };
        if answers && *states.borrow() == State::Deaf {
            continue;
        }
        if to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}
