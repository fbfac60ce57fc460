//! Ranks as processes: a connection between every two, tensors as bytes, a thread for each connection that fills the
//! mailbox.
//!
//! A process that ends well says goodbye on every connection. One whose connection closes without a goodbye is dead, which
//! the others notice within milliseconds: the system closes the sockets of a killed process.

use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tch::{Kind, Tensor};

use super::exchange::{Exchange, Transport};
use super::mailbox::{Channel, Death, Key, Mailbox, Parcel};
use super::rendezvous::{
    Rendezvous, RendezvousError, connect, introduce, listen_everywhere, read_introduction, read_u64,
};
use super::{CommFailure, Operation};

/// How long to wait for a rank's reason after its connection broke.
const LAST_MESSAGE: Duration = Duration::from_millis(500);

/// Joins the world of `size` processes, whose rank 0 is at `address` (host and port). Each process must come before `timeout`,
/// which also limits each later operation.
///
/// # Errors
/// Ranks that did not come or contradict each other.
pub fn world(rank: usize, size: usize, address: (&str, u16), timeout: Duration) -> Result<Exchange, RendezvousError> {
    let rendezvous = Rendezvous { rank, size, address, timeout, started: Instant::now() };
    let listener = listen_everywhere(0).map_err(|error| rendezvous.peer_error(rank, &error))?;
    let port = listener.local_addr().map_err(|error| rendezvous.peer_error(rank, &error))?.port();
    let addresses = rendezvous.addresses(port)?;
    let streams = mesh(&rendezvous, &listener, &addresses)?;
    let mailbox = Arc::new(Mailbox::default());
    let mut peers = Vec::with_capacity(size);
    for (peer, stream) in streams.into_iter().enumerate() {
        let Some(stream) = stream else {
            peers.push(None);
            continue;
        };
        let set_up = || {
            stream.set_write_timeout(Some(timeout))?;
            let (incoming, mailbox) = (stream.try_clone()?, mailbox.clone());
            thread::Builder::new().name(format!("rank {peer}")).spawn(move || read_all(peer, incoming, &mailbox))
        };
        set_up().map_err(|error| rendezvous.peer_error(peer, &error))?;
        peers.push(Some(Mutex::new(stream)));
    }
    Ok(Exchange::world(Arc::new(Process { rank, timeout, mailbox, peers }), size, timeout))
}

/// A connection to each other rank: this one calls those before it and is called by those after it.
fn mesh(
    rendezvous: &Rendezvous<'_>,
    listener: &TcpListener,
    addresses: &[SocketAddr],
) -> Result<Vec<Option<TcpStream>>, RendezvousError> {
    let mut streams: Vec<Option<TcpStream>> = addresses.iter().map(|_| None).collect();
    for (peer, address) in addresses.iter().enumerate().take(rendezvous.rank) {
        let call = || {
            let mut stream = connect(address, rendezvous.rest())?;
            introduce(&mut stream, rendezvous.rank, rendezvous.size, 0)?;
            Ok(stream)
        };
        streams[peer] = Some(call().map_err(|error: io::Error| rendezvous.peer_error(peer, &error))?);
    }
    listener.set_nonblocking(true).map_err(|error| rendezvous.peer_error(rendezvous.rank, &error))?;
    while let Some(lacking) = (rendezvous.rank + 1..rendezvous.size).find(|&peer| streams[peer].is_none()) {
        match listener.accept() {
            Ok((mut stream, _)) => {
                if let Ok((peer, size, _)) = read_introduction(&mut stream)
                    && size == rendezvous.size
                    && (rendezvous.rank + 1..size).contains(&peer)
                {
                    streams[peer] = Some(stream);
                }
            }
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                return Err(rendezvous.peer_error(lacking, &error));
            }
            Err(_) if rendezvous.started.elapsed() >= rendezvous.timeout => {
                return Err(rendezvous.peer_error(lacking, &io::Error::other("it did not connect in time")));
            }
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
    Ok(streams)
}

struct Process {
    rank: usize,
    timeout: Duration,
    mailbox: Arc<Mailbox>,
    /// `[rank]`; none for this one.
    peers: Vec<Option<Mutex<TcpStream>>>,
}

impl Process {
    fn write(&self, to: usize, bytes: &[u8]) -> io::Result<()> {
        let Some(stream) = &self.peers[to] else {
            return Ok(());
        };
        stream.lock().unwrap_or_else(PoisonError::into_inner).write_all(bytes)
    }

    fn write_to_all(&self, bytes: &[u8]) {
        for peer in 0..self.peers.len() {
            // A dead rank need not hear it.
            let _ = self.write(peer, bytes);
        }
    }
}

impl Transport for Process {
    fn rank(&self) -> usize {
        self.rank
    }

    fn mailbox(&self) -> &Mailbox {
        &self.mailbox
    }

    fn post(&self, to: usize, key: Key, parcel: Parcel) -> Result<(), CommFailure> {
        if to == self.rank {
            self.mailbox.post(key, parcel);
            return Ok(());
        }
        let bytes = encode(&key, &parcel).map_err(|error| CommFailure::Library(error.to_string()))?;
        self.write(to, &bytes).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                CommFailure::Late { ranks: vec![to], waited: self.timeout }
            }
            _ => {
                // Its reason, or the death of another rank that caused it, may still be on the way.
                let heard = self.mailbox.death_within(LAST_MESSAGE);
                let death = heard.unwrap_or_else(|| Death { rank: to, how: how_it_ended(&error) });
                self.mailbox.note_death(&death);
                CommFailure::Died { rank: death.rank, how: death.how }
            }
        })
    }

    fn announce(&self, death: &Death) {
        self.mailbox.note_death(death);
        let mut bytes = vec![DEATH];
        bytes.extend((death.rank as u64).to_le_bytes());
        bytes.extend((death.how.len() as u64).to_le_bytes());
        bytes.extend(death.how.as_bytes());
        self.write_to_all(&bytes);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if thread::panicking() {
            self.announce(&Death { rank: self.rank, how: "its thread panicked".to_owned() });
        } else {
            self.write_to_all(&[GOODBYE]);
        }
        for stream in self.peers.iter_mut().flatten() {
            let stream = stream.get_mut().unwrap_or_else(PoisonError::into_inner);
            // The reading half stays open in its thread, so that no data on the way to the others is lost.
            let _ = stream.shutdown(Shutdown::Write);
        }
    }
}

const PARCEL: u8 = 0;
const GOODBYE: u8 = 1;
const DEATH: u8 = 2;

/// Kinds of tensors, by the number that encodes them.
const KINDS: [Kind; 9] = [
    Kind::Uint8,
    Kind::Int8,
    Kind::Int16,
    Kind::Int,
    Kind::Int64,
    Kind::Half,
    Kind::Float,
    Kind::Double,
    Kind::BFloat16,
];

/// Fills the mailbox from one peer until it ends.
fn read_all(peer: usize, stream: TcpStream, mailbox: &Mailbox) {
    let mut stream = BufReader::with_capacity(1 << 16, stream);
    loop {
        match read_one(peer, &mut stream, mailbox) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                mailbox.note_death(&Death { rank: peer, how: how_it_ended(&error) });
                return;
            }
        }
    }
}

/// How the process at the other end of a broken connection ended. The system closes the connections of a killed process, and
/// resets those that still held data for it.
fn how_it_ended(error: &io::Error) -> String {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    match error.kind() {
        BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof => {
            "its connection closed without a goodbye: it crashed or was killed".to_owned()
        }
        _ => format!("its connection broke: {error}"),
    }
}

/// Reads one message; false after the last.
fn read_one(peer: usize, stream: &mut impl Read, mailbox: &Mailbox) -> io::Result<bool> {
    match read_u8(stream)? {
        PARCEL => {
            let (key, parcel) = decode(peer, stream)?;
            mailbox.post(key, parcel);
            Ok(true)
        }
        GOODBYE => {
            mailbox.note_leave(peer);
            Ok(false)
        }
        DEATH => {
            let rank = read_u64(stream)? as usize;
            let mut how = vec![0; read_u64(stream)? as usize];
            stream.read_exact(&mut how)?;
            mailbox.note_death(&Death { rank, how: String::from_utf8_lossy(&how).into_owned() });
            Ok(false)
        }
        other => Err(io::Error::other(format!("a message of unknown kind {other}"))),
    }
}

/// Header (message, channel, operation, kind, dimensions: a byte each; group, sequence, shape: eight bytes each) and elements.
fn encode(key: &Key, parcel: &Parcel) -> io::Result<Vec<u8>> {
    let (tensor, shape) = (parcel.tensor.contiguous(), parcel.tensor.size());
    let kind = position(&KINDS, tensor.kind())?;
    let channel = u8::from(key.channel == Channel::Direct);
    let mut bytes = vec![PARCEL, channel, position(&Operation::ALL, parcel.operation)?, kind, shape.len() as u8];
    bytes.extend(key.group.to_le_bytes());
    bytes.extend(key.sequence.to_le_bytes());
    bytes.extend(shape.iter().flat_map(|extent| extent.to_le_bytes()));
    let header = bytes.len();
    bytes.resize(header + tensor.numel() * tensor.kind().elt_size_in_bytes(), 0);
    tensor.f_copy_data_u8(&mut bytes[header..], tensor.numel()).map_err(io::Error::other)?;
    Ok(bytes)
}

fn decode(from: usize, stream: &mut impl Read) -> io::Result<(Key, Parcel)> {
    let channel = if read_u8(stream)? == 0 { Channel::Collective } else { Channel::Direct };
    let operation = element(&Operation::ALL, read_u8(stream)?)?;
    let kind = element(&KINDS, read_u8(stream)?)?;
    let dimensions = read_u8(stream)?;
    let (group, sequence) = (read_u64(stream)?, read_u64(stream)?);
    let shape = (0..dimensions).map(|_| Ok(read_u64(stream)? as i64)).collect::<io::Result<Vec<_>>>()?;
    let mut content = vec![0; shape.iter().product::<i64>() as usize * kind.elt_size_in_bytes()];
    stream.read_exact(&mut content)?;
    let tensor = Tensor::f_from_data_size(&content, &shape, kind).map_err(io::Error::other)?;
    Ok((Key { group, channel, sequence, from }, Parcel { operation, tensor, sums: None }))
}

fn position<T: PartialEq + std::fmt::Debug>(all: &[T], wanted: T) -> io::Result<u8> {
    let position = all.iter().position(|one| *one == wanted);
    position.map(|index| index as u8).ok_or_else(|| io::Error::other(format!("{wanted:?} cannot be sent")))
}

fn element<T: Copy>(all: &[T], index: u8) -> io::Result<T> {
    let element = all.get(usize::from(index)).copied();
    element.ok_or_else(|| io::Error::other(format!("a header with {index} where {} are known", all.len())))
}

fn read_u8(stream: &mut impl Read) -> io::Result<u8> {
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    Ok(byte[0])
}
