"""Raw Ethernet on one interface of one namespace: sends any bytes, and returns frames exactly as they were on the wire.

The kernel takes VLAN tags out of received frames and reports them beside; receive() puts them back, so that frames
can be compared byte for byte.
"""

import errno
import socket
import struct
import time

ETH_P_ALL = 0x0003
SOL_PACKET = 263
PACKET_AUXDATA = 8
PACKET_IGNORE_OUTGOING = 23
SO_RCVBUFFORCE = 33
# Holds some ten thousand small frames, so that nothing is lost while the scenario prepares the next.
RECEIVE_BUFFER_BYTES = 64 << 20
TP_STATUS_VLAN_VALID = 1 << 4
TP_STATUS_VLAN_TPID_VALID = 1 << 6
SEND_TRIES = 1000
AUXDATA = struct.Struct("=IIIHHHH")
FRAME_BYTES_MAX = 1 << 16


class Wire:
    """A raw socket on an interface. Sees what arrives there, not what is sent from there."""

    def __init__(self, namespace, interface):
        self.interface = interface
        self.mac = namespace.mac(interface)
        self.socket = namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.socket.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        self.socket.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
        with namespace.entered():
            self.socket.bind((interface, ETH_P_ALL))

    def close(self):
        """Closes the socket."""
        self.socket.close()

    def send(self, *frames, pause_every=32, pause_s=0.001):
        """Sends frames (bytes, or anything that bytes() takes), paced so that a ring of the receiver holds them."""
        for index, frame in enumerate(frames, start=1):
            self._send_one(bytes(frame))
            if index % pause_every == 0 and index < len(frames):
                time.sleep(pause_s)

    def _send_one(self, frame):
        for _ in range(SEND_TRIES):
            try:
                self.socket.send(frame)
                return
            except OSError as error:
                # The device's queue is full: its reader is behind.
                if error.errno != errno.ENOBUFS:
                    raise
                time.sleep(0.002)
        raise OSError(errno.ENOBUFS, f"{self.interface}: the queue stays full: nobody reads it")

    def receive(self, timeout_s=2.0, match=None):
        """The next frame for which match(frame) is true, or None when the time is over."""
        deadline = time.monotonic() + timeout_s
        while True:
            self.socket.settimeout(max(deadline - time.monotonic(), 0.0001))
            try:
                frame, ancillary, _, _ = self.socket.recvmsg(FRAME_BYTES_MAX, socket.CMSG_SPACE(AUXDATA.size))
            except (TimeoutError, BlockingIOError):
                return None
            frame = _with_tag(frame, ancillary)
            if match is None or match(frame):
                return frame
            if time.monotonic() >= deadline:
                return None

    def collect(self, quiet_s=0.3, match=None):
        """All frames until none arrives for `quiet_s`."""
        frames = []
        while (frame := self.receive(quiet_s, match)) is not None:
            frames.append(frame)
        return frames

    def drain(self):
        """Throws away what has arrived so far."""
        while self.receive(0.0001) is not None:
            pass


def _with_tag(frame, ancillary):
    for level, kind, data in ancillary:
        if level == SOL_PACKET and kind == PACKET_AUXDATA:
            status, _, _, _, _, tci, tpid = AUXDATA.unpack(data[: AUXDATA.size])
            if status & TP_STATUS_VLAN_VALID:
                tpid = tpid if status & TP_STATUS_VLAN_TPID_VALID else 0x8100
                return frame[:12] + struct.pack("!HH", tpid, tci) + frame[12:]
    return frame
