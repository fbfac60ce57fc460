//! How processes find each other: rank 0 listens at an agreed address; the others connect, send the port where they listen
//! themselves, and receive the addresses of all.
//!
//! Rank 0 answers when all have come. After the timeout it sends those that have come the list of the missing, so that
//! every log names them. Connections of other programs are ignored.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::list;

/// First bytes of every connection: protocol and version.
pub(super) const GREETING: [u8; 8] = *b"moecomm1";
/// Between two attempts to connect or to accept.
const PAUSE: Duration = Duration::from_millis(20);

/// Why processes did not find each other.
#[derive(Debug, thiserror::Error)]
pub enum RendezvousError {
    #[error(
        "rank 0 cannot listen at {address}: {reason}; set MASTER_ADDR (--master-addr) to an address of its machine and MASTER_PORT (--master-port) to a free port, or run all ranks in one process with --backend threads"
    )]
    Listen { address: String, reason: io::Error },
    /// The host of rank 0 has no address.
    #[error(
        "rank {rank}: `{host}`, the host of rank 0, is not known here ({reason}): set MASTER_ADDR (--master-addr) to a name or an address of its machine, or run all ranks in one process with --backend threads"
    )]
    Host { rank: usize, host: String, reason: io::Error },
    #[error("rank {rank}: rank 0 was not reached at {address} within {waited:?}: {last}")]
    Unreachable { rank: usize, address: String, waited: Duration, last: String },
    /// What listens there is not rank 0, or not any more.
    #[error(
        "rank {rank}: what listens at {address} does not answer as rank 0 does ({reason}): either rank 0 ended, and its output says why, or another program has the port: then set MASTER_PORT (--master-port) to a free one"
    )]
    Foreign { rank: usize, address: String, reason: String },
    #[error("rank {rank}: of {size} ranks, {} did not come to {address} within {waited:?}", list(.missing))]
    Missing { rank: usize, size: usize, missing: Vec<usize>, address: String, waited: Duration },
    /// Ranks contradict each other.
    #[error("rank {rank}: at {address}: {reason}")]
    Refused { rank: usize, address: String, reason: String },
    /// A rank that came to the rendezvous was not reached, or broke off.
    #[error("rank {rank}: rank {peer}: {reason}")]
    Peer { rank: usize, peer: usize, reason: String },
}

/// One process at a rendezvous.
pub(super) struct Rendezvous<'a> {
    pub rank: usize,
    pub size: usize,
    /// Host name or address, and port, of rank 0.
    pub address: (&'a str, u16),
    pub timeout: Duration,
    pub started: Instant,
}

impl Rendezvous<'_> {
    /// Where each rank listens; this one listens at `port`.
    pub(super) fn addresses(&self, port: u16) -> Result<Vec<SocketAddr>, RendezvousError> {
        if self.rank == 0 { self.serve(port) } else { self.join(port) }
    }

    /// The rest of the timeout; at least a millisecond, which sockets need.
    pub(super) fn rest(&self) -> Duration {
        self.timeout.saturating_sub(self.started.elapsed()).max(Duration::from_millis(1))
    }

    fn check_host(&self) -> Result<(), RendezvousError> {
        let found = self.address.to_socket_addrs().map(|addresses| addresses.count());
        let reason = match found {
            Ok(0) => io::Error::new(io::ErrorKind::NotFound, "the name has no address"),
            Ok(_) => return Ok(()),
            Err(reason) => reason,
        };
        Err(RendezvousError::Host { rank: self.rank, host: self.address.0.to_owned(), reason })
    }

    fn serve(&self, port: u16) -> Result<Vec<SocketAddr>, RendezvousError> {
        let mut peers: Vec<Option<(TcpStream, u16)>> = (0..self.size).map(|_| None).collect();
        if self.size > 1 {
            // Rank 0 listens at all addresses, but the others look for this one.
            self.check_host()?;
            let listener = self.listen()?;
            while peers.iter().skip(1).any(Option::is_none) {
                if self.started.elapsed() >= self.timeout {
                    return Err(self.give_up(&mut peers));
                }
                match listener.accept() {
                    Ok((stream, _)) => self.accept(stream, &mut peers)?,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(PAUSE),
                    Err(reason) => return Err(RendezvousError::Listen { address: self.place(), reason }),
                }
            }
        }
        // Where each peer comes from, as rank 0 sees it. An address on rank 0's own machine means nothing elsewhere: the others
        // replace it by the address at which they reached rank 0.
        let entry = |peer: &Option<(TcpStream, u16)>| match peer {
            None => (Ipv6Addr::UNSPECIFIED, port),
            Some((stream, port)) => (outside_address(stream), *port),
        };
        let entries: Vec<(Ipv6Addr, u16)> = peers.iter().map(entry).collect();
        for (rank, peer) in peers.iter_mut().enumerate() {
            if let Some((stream, _)) = peer {
                send_table(stream, &entries).map_err(|error| self.peer_error(rank, &error))?;
            }
        }
        Ok(entries.into_iter().map(|entry| resolve(entry, IpAddr::V4(Ipv4Addr::LOCALHOST))).collect())
    }

    /// Accepts a connection that speaks this protocol.
    fn accept(&self, mut stream: TcpStream, peers: &mut [Option<(TcpStream, u16)>]) -> Result<(), RendezvousError> {
        let Ok((rank, size, port)) = read_introduction(&mut stream) else {
            return Ok(());
        };
        let reason = if size != self.size {
            Some(format!("rank {rank} expects a world of {size}, rank 0 one of {}", self.size))
        } else if rank == 0 || rank >= self.size {
            Some(format!("a process came as rank {rank} of {size}"))
        } else if peers[rank].is_some() {
            Some(format!("two processes came as rank {rank}"))
        } else {
            None
        };
        let Some(reason) = reason else {
            peers[rank] = Some((stream, port));
            return Ok(());
        };
        let streams = peers.iter_mut().flatten().map(|(stream, _)| stream);
        for stream in streams.chain([&mut stream]) {
            // A peer that does not get this finds the connection closed.
            let _ = send_refusal(stream, &reason);
        }
        Err(RendezvousError::Refused { rank: self.rank, address: self.place(), reason })
    }

    fn give_up(&self, peers: &mut [Option<(TcpStream, u16)>]) -> RendezvousError {
        let missing: Vec<usize> = (1..self.size).filter(|&rank| peers[rank].is_none()).collect();
        for (stream, _) in peers.iter_mut().flatten() {
            let _ = send_missing(stream, &missing);
        }
        self.missing(missing)
    }

    fn missing(&self, missing: Vec<usize>) -> RendezvousError {
        let (rank, size, address, waited) = (self.rank, self.size, self.place(), self.timeout);
        RendezvousError::Missing { rank, size, missing, address, waited }
    }

    fn listen(&self) -> Result<TcpListener, RendezvousError> {
        let error = |reason| RendezvousError::Listen { address: self.place(), reason };
        let (host, port) = self.address;
        // On its own machine, a host's name may resolve to a loopback address, which other machines cannot reach: unless
        // loopback was asked for, rank 0 listens at all addresses.
        let loopback = host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback());
        let bound = if loopback { TcpListener::bind(self.address) } else { listen_everywhere(port) };
        let listener = bound.map_err(error)?;
        listener.set_nonblocking(true).map_err(error)?;
        Ok(listener)
    }

    fn join(&self, port: u16) -> Result<Vec<SocketAddr>, RendezvousError> {
        let mut stream = self.connect()?;
        // Rank 0 says when it gives up; wait a little longer, to hear it.
        let patience = self.rest() + Duration::from_secs(2);
        let reply = stream
            .set_read_timeout(Some(patience))
            .and_then(|()| introduce(&mut stream, self.rank, self.size, port))
            .and_then(|()| read_reply(&mut stream, self.size))
            .map_err(|error| self.foreign(&error))?;
        let host = stream.peer_addr().map_err(|error| self.peer_error(0, &error))?.ip();
        match reply {
            Reply::Table(entries) => Ok(entries.into_iter().map(|entry| resolve(entry, host)).collect()),
            Reply::Missing(missing) => Err(self.missing(missing)),
            Reply::Refused(reason) => Err(RendezvousError::Refused { rank: self.rank, address: self.place(), reason }),
        }
    }

    /// Connects to rank 0, which may start later.
    fn connect(&self) -> Result<TcpStream, RendezvousError> {
        loop {
            let last = match try_connect(self.address, self.rest()) {
                Ok(stream) => return Ok(stream),
                Err(error) => error.to_string(),
            };
            if self.started.elapsed() >= self.timeout {
                self.check_host()?;
                let (rank, address, waited) = (self.rank, self.place(), self.timeout);
                return Err(RendezvousError::Unreachable { rank, address, waited, last });
            }
            thread::sleep(PAUSE);
        }
    }

    fn foreign(&self, error: &io::Error) -> RendezvousError {
        let reason = match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "it sends nothing".to_owned(),
            io::ErrorKind::UnexpectedEof => "it closed the connection".to_owned(),
            _ => error.to_string(),
        };
        RendezvousError::Foreign { rank: self.rank, address: self.place(), reason }
    }

    pub(super) fn peer_error(&self, peer: usize, error: &io::Error) -> RendezvousError {
        RendezvousError::Peer { rank: self.rank, peer, reason: error.to_string() }
    }

    fn place(&self) -> String {
        format!("{}:{}", self.address.0, self.address.1)
    }
}

/// Listens at all addresses of this machine, in IPv6 and IPv4 where there is both.
pub(super) fn listen_everywhere(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
}

/// Sends greeting, rank, size, port.
pub(super) fn introduce(stream: &mut TcpStream, rank: usize, size: usize, port: u16) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut bytes = GREETING.to_vec();
    for number in [rank as u64, size as u64, u64::from(port)] {
        bytes.extend(number.to_le_bytes());
    }
    stream.write_all(&bytes)
}

/// Receives rank, size, port. Another program that sends nothing is not waited for long.
pub(super) fn read_introduction(stream: &mut TcpStream) -> io::Result<(usize, usize, u16)> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut greeting = [0; GREETING.len()];
    stream.read_exact(&mut greeting)?;
    if greeting != GREETING {
        return Err(io::Error::other("not a rank of this program"));
    }
    let (rank, size, port) = (read_u64(stream)?, read_u64(stream)?, read_u64(stream)?);
    stream.set_read_timeout(None)?;
    Ok((rank as usize, size as usize, u16::try_from(port).map_err(io::Error::other)?))
}

pub(super) fn read_u64(stream: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

enum Reply {
    Table(Vec<(Ipv6Addr, u16)>),
    Missing(Vec<usize>),
    Refused(String),
}

const TABLE: u64 = 0;
const MISSING: u64 = 1;
const REFUSED: u64 = 2;

fn send_table(stream: &mut TcpStream, entries: &[(Ipv6Addr, u16)]) -> io::Result<()> {
    let mut bytes = TABLE.to_le_bytes().to_vec();
    for (address, port) in entries {
        bytes.extend(address.octets());
        bytes.extend(u64::from(*port).to_le_bytes());
    }
    stream.write_all(&bytes)
}

fn send_missing(stream: &mut TcpStream, missing: &[usize]) -> io::Result<()> {
    let numbers = [MISSING, missing.len() as u64].into_iter().chain(missing.iter().map(|&rank| rank as u64));
    stream.write_all(&numbers.flat_map(u64::to_le_bytes).collect::<Vec<_>>())
}

fn send_refusal(stream: &mut TcpStream, reason: &str) -> io::Result<()> {
    let mut bytes = [REFUSED, reason.len() as u64].map(u64::to_le_bytes).concat();
    bytes.extend(reason.as_bytes());
    stream.write_all(&bytes)
}

fn read_reply(stream: &mut TcpStream, size: usize) -> io::Result<Reply> {
    match read_u64(stream)? {
        TABLE => {
            let mut entries = Vec::with_capacity(size);
            for _ in 0..size {
                let mut octets = [0; 16];
                stream.read_exact(&mut octets)?;
                let port = u16::try_from(read_u64(stream)?).map_err(io::Error::other)?;
                entries.push((Ipv6Addr::from(octets), port));
            }
            Ok(Reply::Table(entries))
        }
        MISSING => {
            let count = read_u64(stream)?.min(size as u64);
            let missing = (0..count).map(|_| Ok(read_u64(stream)? as usize)).collect::<io::Result<_>>()?;
            Ok(Reply::Missing(missing))
        }
        REFUSED => {
            let mut text = vec![0; read_u64(stream)?.min(4096) as usize];
            stream.read_exact(&mut text)?;
            Ok(Reply::Refused(String::from_utf8_lossy(&text).into_owned()))
        }
        other => Err(io::Error::other(format!("an answer of unknown kind {other}"))),
    }
}

/// A peer's address; unspecified if it is on rank 0's machine.
fn outside_address(stream: &TcpStream) -> Ipv6Addr {
    let (Ok(there), Ok(here)) = (stream.peer_addr(), stream.local_addr()) else {
        return Ipv6Addr::UNSPECIFIED;
    };
    match there.ip().to_canonical() {
        address if address.is_loopback() || address == here.ip().to_canonical() => Ipv6Addr::UNSPECIFIED,
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

/// `host`: the address at which rank 0's machine was reached.
fn resolve((address, port): (Ipv6Addr, u16), host: IpAddr) -> SocketAddr {
    let ip = if address.is_unspecified() { host } else { address.to_canonical() };
    SocketAddr::new(ip, port)
}

/// Connects so that the port of this end may be listened at while the connection lasts and after: the system may choose the very port
/// at which rank 0 is to listen, and keeps it for a minute after the connection is over.
pub(super) fn connect(address: &SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(*address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.connect_timeout(&(*address).into(), timeout)?;
    Ok(socket.into())
}

/// Tries every address of a name.
fn try_connect(address: (&str, u16), timeout: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in address.to_socket_addrs()? {
        match connect(&address, timeout.min(Duration::from_secs(5))) {
            // On one machine, while nobody listens yet, an attempt may get the port itself for its own end, and reaches itself.
            Ok(stream) if stream.local_addr()? == stream.peer_addr()? => {
                last = io::Error::new(io::ErrorKind::ConnectionRefused, "nobody listens there yet");
            }
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Attempts get the even ports of a range one after the other for their own ends: at some time the port that is called.
    #[test]
    fn a_port_where_nobody_listens_is_never_reached_and_stays_free() {
        let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).and_then(|listener| listener.local_addr());
        // Another test may listen at the port meanwhile, or may have left it a moment ago, so that no attempt gets it: then at another one.
        let nobody_came = (0..5).any(|_| {
            let even = std::iter::repeat_with(|| free(0).unwrap().port() & !1);
            let port = even.take(1000).find(|&port| free(port).is_ok()).unwrap();
            let (address, timeout) = (("127.0.0.1", port), Duration::from_millis(100));
            let mut reached_itself = false;
            for _ in 0..60_000 {
                match try_connect(address, timeout) {
                    Ok(to) => {
                        assert_ne!(to.local_addr().unwrap(), to.peer_addr().unwrap(), "an attempt reached itself");
                        return false;
                    }
                    // The system refuses the others.
                    Err(error) if error.raw_os_error().is_none() => {
                        reached_itself = true;
                        break;
                    }
                    Err(_) => {}
                }
            }
            let listens = |host| {
                let rank_0 = Rendezvous { rank: 0, size: 2, address: (host, port), timeout, started: Instant::now() };
                rank_0.listen().is_ok()
            };
            reached_itself && ["127.0.0.1", "a name"].into_iter().all(listens)
        });
        assert!(nobody_came, "no attempt got the port that it called for its own end, or it did not stay free");
    }
}
