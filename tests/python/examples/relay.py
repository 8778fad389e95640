"""A TCP relay between a client and a server, whose connections the test can break."""

import contextlib
import socket
import threading


class Relay:
    """Passes bytes on in both directions, for the time of a block."""

    def __init__(self, port):
        self._target = port
        self._sockets = []
        self._is_closed = False

    def __enter__(self):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._listener.close()
        self.cut()

    def cut(self):
        """Breaks all connections. New ones are still accepted."""
        for end in self._sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def closed(self):
        """Breaks all connections, and new ones too for the time of a block."""
        self._is_closed = True
        self.cut()
        yield
        self._is_closed = False

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self._is_closed:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [client, server]
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=pump, args=(source, sink), daemon=True).start()


def pump(source, sink):
    """Passes bytes on until one of the sockets is closed, and then closes the other."""
    with contextlib.suppress(OSError):
        while piece := source.recv(65_536):
            sink.sendall(piece)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)
