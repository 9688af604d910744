//! An echo server around the hub's own WebSocket codec and nothing else of the hub, for conformance
//! suites: whatever they find is the codec's fault.
//!
//!     ws_echo [--listen 127.0.0.1:0] [--max-message-bytes N] [--max-fragments N]
//!
//! Prints the address that it listens on. The limits are wide by default, because a suite sends
//! messages of 16 MiB and in thousands of fragments.

use std::error::Error;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};

use realtime_core::close::CloseReason;
use realtime_core::protocol::{Inbound, MessageKind};
use realtime_core::transport::websocket::WebSocket;
use realtime_core::transport::{Event, Framing, InboundLimits, InboundState};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// Longest request head, and longest line of it.
const MAX_HEAD_BYTES: u64 = 16 << 10;

fn main() -> Result<(), Box<dyn Error>> {
    let mut listen = "127.0.0.1:0".to_owned();
    let mut limits = InboundLimits { max_message_bytes: 64 << 20, max_fragments: 1 << 20 };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--listen" => listen = value,
            "--max-message-bytes" => limits.max_message_bytes = value.parse()?,
            "--max-fragments" => limits.max_fragments = value.parse()?,
            _ => return Err(format!("unknown argument {name}").into()),
        }
    }
    let listener = TcpListener::bind(listen)?;
    writeln!(io::stdout(), "listening on {}", listener.local_addr()?)?;
    for stream in listener.incoming() {
        let stream = stream?;
        std::thread::spawn(move || {
            // A suite breaks connections on purpose.
            if let Err(error) = serve(stream, &limits) {
                drop(writeln!(io::stderr(), "connection ended: {error}"));
            }
        });
    }
    Ok(())
}

fn serve(stream: TcpStream, limits: &InboundLimits) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    shake_hands(&mut reader, &mut writer)?;
    let mut state = InboundState::default();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let received = reader.read(&mut buffer)?;
        if received == 0 {
            return Ok(());
        }
        let mut input = &mut buffer[..received];
        let mut out = Vec::new();
        let ended = loop {
            match WebSocket.next(&mut state, &mut input, limits) {
                Ok(None) => break false,
                Ok(Some(Event::Message(Inbound::Text(text)))) => WebSocket.seal(MessageKind::Text, text.as_bytes(), &mut out),
                Ok(Some(Event::Message(Inbound::Binary(bytes)))) => WebSocket.seal(MessageKind::Binary, bytes, &mut out),
                Ok(Some(Event::Ping(payload))) => WebSocket.pong(payload, &mut out),
                Ok(Some(Event::Pong)) => {}
                Ok(Some(Event::Close(code))) => {
                    let mut answer = CloseReason::Peer.websocket();
                    answer.code = code.unwrap_or(answer.code);
                    WebSocket.close(answer, "", &mut out);
                    break true;
                }
                Err(error) => {
                    WebSocket.close(CloseReason::from(error).websocket(), &error.to_string(), &mut out);
                    break true;
                }
            }
        };
        writer.write_all(&out)?;
        if ended {
            writer.shutdown(std::net::Shutdown::Write)?;
            // A socket closed over unread bytes resets, and could take the close frame with it.
            io::copy(&mut reader, &mut io::sink())?;
            return Ok(());
        }
    }
}

/// The least of a handshake that a suite's client accepts.
fn shake_hands(reader: &mut impl BufRead, writer: &mut impl Write) -> io::Result<()> {
    let mut head = reader.take(MAX_HEAD_BYTES);
    let mut key = None;
    loop {
        let mut line = String::new();
        if head.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("sec-websocket-key")
        {
            key = Some(value.trim().to_owned());
        }
    }
    let accept = derive_accept_key(key.ok_or(io::ErrorKind::InvalidData)?.as_bytes());
    write!(
        writer,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    )
}
