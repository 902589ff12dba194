"""Every byte that crosses the loopback interface, as any neighbour with a packet capture would see it."""

from __future__ import annotations

import socket
import threading
from types import TracebackType

ETH_P_ALL = 0x0003
PACKET_OUTGOING = 4  # <linux/if_packet.h>: on loopback each frame is seen going out and coming in


class LoopbackCapture:
    """
    Captures raw frames on `lo` while the `with` block runs (needs CAP_NET_RAW; see `available`).

    `payload` joins what one TCP port sent and received, in order of capture, so that a text cut
    across two segments of one direction is still found.
    """

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self._stop = threading.Event()

    @staticmethod
    def available() -> bool:
        try:
            socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)).close()
        except (AttributeError, OSError):
            return False
        return True

    def __enter__(self) -> LoopbackCapture:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 20)
        self._socket.bind(("lo", 0))
        self._socket.settimeout(0.2)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()

    def _read(self) -> None:
        while not self._stop.is_set():
            try:
                frame, address = self._socket.recvfrom(1 << 17)
            except TimeoutError:
                continue
            if address[2] != PACKET_OUTGOING:
                self.frames.append(frame)

    def payload(self, port: int) -> tuple[bytes, bytes]:
        """The bytes (to the port, from the port) of all its TCP segments over IPv4."""
        to_port, from_port = bytearray(), bytearray()
        for frame in self.frames:
            packet = frame[14:]
            if len(packet) < 20 or packet[0] >> 4 != 4 or packet[9] != socket.IPPROTO_TCP:
                continue
            segment = packet[(packet[0] & 15) * 4 : int.from_bytes(packet[2:4], "big")]
            source, target = int.from_bytes(segment[:2], "big"), int.from_bytes(segment[2:4], "big")
            data = segment[(segment[12] >> 4) * 4 :]
            if target == port:
                to_port += data
            elif source == port:
                from_port += data
        return bytes(to_port), bytes(from_port)
