//! The socket to the init: its streams go one way, what it has to say comes the other, and the
//! kernel names the sender in our pid numbering.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{fd::BorrowedFd, unix::net::UnixStream},
};

use rustix::{
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recv, recvmsg, sendmsg,
    },
    process::Pid,
};

/// What one look at the socket gave.
pub(super) enum Heard {
    /// Nothing yet.
    Nothing,
    /// The init is gone.
    End,
    /// Bytes, now in the buffer, and who sent them.
    Bytes {
        /// As the kernel says.
        sender: Option<Pid>,
    },
}

/// One read, without waiting.
pub(super) fn receive(socket: &UnixStream, into: &mut Vec<u8>) -> io::Result<Heard> {
    let mut chunk = [0; 4096];
    // Credentials of an end of file would be those of nobody.
    let count = match recv(socket, &mut chunk, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((count, _)) => count,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(Heard::Nothing),
        Err(rustix::io::Errno::CONNRESET) => 0,
        Err(error) => return Err(error.into()),
    };
    if count == 0 {
        return Ok(Heard::End);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut chunk)],
        &mut control,
        RecvFlags::DONTWAIT,
    )?;
    let sender = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmCredentials(credentials) => Some(credentials.pid),
        _ => None,
    });
    into.extend_from_slice(chunk.get(..message.bytes).unwrap_or_default());
    Ok(Heard::Bytes { sender })
}

/// Hands the agent's standard streams to the init.
pub(super) fn send_streams(socket: &UnixStream, streams: [BorrowedFd<'_>; 3]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&streams));
    sendmsg(
        socket,
        &[IoSlice::new(&[0])],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}
