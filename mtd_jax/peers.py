"""The processes of a run watch each other: when one ends early, all end, with one line that says why.

Left alone, the others would wait for it in a collective operation until JAX's heartbeats give up. So every process
keeps a connection to process 0, over which an error is told, and which the system closes whatever becomes of the
process. Needs neither JAX nor a step that goes on: a thread of its own ends the process.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time

from mtd_jax.errors import Interrupted, UserError, error_line

GONE = 75  # exit code (EX_TEMPFAIL of sysexits.h): nothing is wrong with the run, start it again
_GRACE_SECONDS = 5.0  # for the news why a collective operation has failed
_CONNECT_SECONDS = 10.0
_watch: "_Watch | None" = None


def listen() -> tuple[socket.socket, dict]:
    """For process 0: a socket for the others, and what they need to find it (JSON)."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    server = socket.create_server(("", 0), family=family, backlog=1024, dualstack_ipv6=both)
    addresses = dict.fromkeys([_outward_address(), *_named_addresses()])
    return server, {"addresses": list(addresses), "port": server.getsockname()[1], "token": os.urandom(16).hex()}


def watch(index: int, count: int, where: dict, server: socket.socket | None, also: str | None = None):
    """Starts to watch, in process `index` of `count`. In all but process 0 it returns once that knows of this one.

    Args: where, server: as from `listen` in process 0; also: another address to try, as the user names it.
    """
    global _watch
    _watch = _Watch(index, where["token"])
    # Data workers of a process that ends at once leave memory behind, which Python clears away, and speaks of.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
    if server is not None:
        threading.Thread(target=_watch.accept, args=(server, count - 1), daemon=True).start()
        return
    for address in [*([also] if also else []), *where["addresses"]]:
        try:
            connection = socket.create_connection((address, where["port"]), timeout=_CONNECT_SECONDS)
            connection.sendall(_watch.line(hello=index))
            lines = connection.makefile()
            if json.loads(lines.readline())["token"] != where["token"]:
                raise ValueError
        except (OSError, ValueError, KeyError):
            continue
        return _watch.add(connection, lines, 0)
    print(
        f"warning: process {index} cannot reach process 0 at {where['addresses']}, port {where['port']}: "
        "the end of another process will be noticed late",
        file=sys.stderr,
    )


def leave(line: str, code: int) -> int:
    """Prints the line on stderr and returns the code, to end with; with other processes, see `end_all`."""
    end_all(line, code)
    print(line, file=sys.stderr)
    return code


def end_all(line: str, code: int):
    """With other processes, prints the line, tells them, and ends this one at once; alone, does nothing."""
    if _watch is not None:
        _watch.end(line, code, told=_attributed(line, _watch.index))


@contextlib.contextmanager
def all_or_none():
    """With other processes: an exception that means failure ends all of them here, before anything waits for them.

    What a process meets when another one dies is such an exception, too; then the death is what gets reported.
    """
    try:
        yield
    except (UserError, OSError) as error:
        end_all(error_line(error), 1)
        raise
    except Interrupted:
        raise
    except Exception:
        if _watch is not None:
            time.sleep(_GRACE_SECONDS)
            sys.excepthook(*sys.exc_info())
            end_all("error: failed, see above", 1)
        raise


def finish(line: str | None = None):
    """Tells the others that this process has done its work, so that its end is no loss.

    Args: line: to be printed on stderr, by the first process alone.
    """
    if line and (_watch is None or _watch.index == 0):
        print(line, file=sys.stderr)
    if _watch is not None:
        _watch.tell(done=True)


class _Watch:
    """The connections of this process: in process 0 to all others, in another to process 0."""

    def __init__(self, index: int, token: str):
        self.index = index
        self._token = token
        self._connections: dict[int, socket.socket] = {}
        self._lock = threading.Lock()
        self._ending = threading.Lock()

    def accept(self, server: socket.socket, others: int):
        """Takes in the others; whoever does not know the token is sent away."""
        while len(self._connections) < others:
            connection, _ = server.accept()
            connection.settimeout(_CONNECT_SECONDS)
            lines = connection.makefile()
            try:
                hello = json.loads(lines.readline())
                if hello["token"] != self._token:
                    raise ValueError
                connection.sendall(self.line(welcome=True))
                self.add(connection, lines, int(hello["hello"]))
            except (OSError, ValueError, KeyError, TypeError):
                lines.close()
                connection.close()

    def add(self, connection: socket.socket, lines, index: int):
        """Follows a connection to process `index`; lines: its file to read."""
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):  # a host without power or network is missed after half a minute
            for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        with self._lock:
            self._connections[index] = connection
        threading.Thread(target=self._follow, args=(lines, index), daemon=True).start()

    def tell(self, **message):
        """Sends a message over all connections, as far as they go."""
        with self._lock:
            for connection in self._connections.values():
                with contextlib.suppress(OSError):  # the thread that follows it deals with that
                    connection.sendall(self.line(**message))

    def line(self, **message) -> bytes:
        return json.dumps({"token": self._token, **message}).encode() + b"\n"

    def end(self, line: str, code: int, *, told: str | None = None):
        """Ends this process, and with it all others, which print `told`. The first call has its say."""
        with self._ending:
            print(line, file=sys.stderr)
            self.tell(line=told or line, code=code)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)  # sys.exit would let JAX wait for the others

    def _follow(self, lines, index: int):
        """Waits for what a process has to say, or for its end."""
        done = False
        try:
            for line in lines:
                message = json.loads(line)
                done = done or "done" in message
                if "code" in message:
                    self.end(message["line"], message["code"])
        except (OSError, ValueError):
            pass
        if not done:
            self.end(_lost(f"process {index}"), GONE)


def _attributed(line: str, index: int) -> str:
    """The line for the other processes: it says whose error it is, unless it speaks of processes already."""
    return line if line.startswith("error: process ") else line.replace("error:", f"error: process {index}:", 1)


def _lost(who: str) -> str:
    return f"error: {who} went away; start all of them again, a training goes on from its last checkpoint"


def _outward_address() -> str:
    """The address of the interface that leads out; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.255.255.255", 1))
            return probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"


def _named_addresses() -> list[str]:
    try:
        return [a for a in socket.gethostbyname_ex(socket.gethostname())[2] if not a.startswith("127.")]
    except OSError:
        return []
