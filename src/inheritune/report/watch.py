"""The page of runs that go on, served on this machine alone and drawn anew as their records change."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from inheritune.errors import Refused
from inheritune.report.beside import read_runs
from inheritune.report.page import render_report, rendered_comparison

ADDRESS = "127.0.0.1"
_NAMES = (ADDRESS, "localhost")
_WATCHED = ("*.json", "*.jsonl", "recipe.yaml", "**/metrics.jsonl")
_ASK_EVERY_SECONDS = 3
_DRAW_EVERY_SECONDS = 5.0
"""At most so often: drawing takes a second, which the run might want for itself."""

# What a reader chose stays when the page is replaced: axes, what is folded out, the place, the focus.
_SCRIPT = """<script>
(() => {
  let tag = null;
  // several runs on a page have sections of the same heading
  const named = (page) => {
    const seen = {};
    return [...page.querySelectorAll("details")].map((one) => {
      const heading = one.querySelector("summary").firstChild.textContent.trim();
      seen[heading] = (seen[heading] || 0) + 1;
      return [one, `${heading} ${seen[heading]}`];
    });
  };
  const label = (text) => { document.getElementById("watch").textContent = text; };
  const replace = (source) => {
    const fresh = new DOMParser().parseFromString(source, "text/html");
    const checked = [...document.querySelectorAll("input:checked")].map((one) => one.id);
    const open = new Set(named(document).filter(([one]) => one.open).map(([_, name]) => name));
    const focused = document.activeElement && document.activeElement.id;
    const [left, top] = [window.scrollX, window.scrollY];
    for (const name of ["header", "main"]) {
      document.querySelector(name).replaceWith(fresh.querySelector(name));
    }
    for (const id of checked) {
      const one = document.getElementById(id);
      if (one) one.checked = true;
    }
    for (const [one, name] of named(document)) one.open = open.has(name);
    if (focused && document.getElementById(focused)) document.getElementById(focused).focus({preventScroll: true});
    window.scrollTo(left, top);
  };
  const refresh = async () => {
    try {
      const answer = await fetch("/", {cache: "no-store", headers: tag ? {"If-None-Match": tag} : {}});
      if (answer.status === 200) {
        const source = await answer.text();
        replace(source);
        tag = answer.headers.get("ETag");
        label("Watching; last change " + new Date().toLocaleTimeString());
      }
    } catch (error) {
      label("No longer watching: inheritune report --watch has ended");
    }
    setTimeout(refresh, EVERY);
  };
  addEventListener("DOMContentLoaded", () => {
    const line = document.createElement("p");
    line.id = "watch";
    line.setAttribute("role", "status");
    document.body.prepend(line);
    refresh();
  });
})();
</script>""".replace("EVERY", str(1000 * _ASK_EVERY_SECONDS))
_STYLE = "<style>#watch{max-width:45rem;margin:0 auto 1rem;color:var(--quiet);font-size:.85rem}</style>"
_ICON = '<link rel="icon" href="data:,">'


class Watched:
    """The page of some runs, drawn when it is asked for and its records have changed.

    Args:
        runs: run directories.
        clock: gives seconds.
    """

    def __init__(self, runs: Sequence[Path], clock: Callable[[], float] = time.monotonic) -> None:
        self._runs = list(runs)
        self._clock = clock
        self._lock = threading.Lock()
        self._page, self._tag = b"", ""
        self._drawn_at = -_DRAW_EVERY_SECONDS

    def page(self) -> tuple[str, bytes]:
        """The page and a word for what it was drawn from, which changes with it."""
        with self._lock:
            tag = f'"{self._stamp()}"'
            due = self._clock() - self._drawn_at >= _DRAW_EVERY_SECONDS
            if not self._page or (tag != self._tag and due):
                self._page, self._tag = self._draw().encode("utf-8", "replace"), tag
                self._drawn_at = self._clock()
            return self._tag, self._page

    def _draw(self) -> str:
        head = f"{_ICON}{_STYLE}{_SCRIPT}"
        if len(self._runs) == 1:
            return render_report(self._runs[0], head)
        return rendered_comparison(read_runs(self._runs), head)[0]

    def _stamp(self) -> str:
        """A hash of names, sizes and times of the records."""
        stamp = hashlib.sha256()
        for run in self._runs:
            for pattern in _WATCHED:
                for path in sorted(run.glob(pattern)):
                    try:
                        known = path.stat()
                    except OSError:  # a record may be replaced at this moment
                        continue
                    stamp.update(f"{path}\0{known.st_size}\0{known.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
        return stamp.hexdigest()[:32]


def _handler(watched: Watched) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # Another site's name may be made to lead here; what is shown is for this machine alone.
            host = (self.headers.get("Host") or "").rpartition(":")[0] or self.headers.get("Host")
            if host not in _NAMES:
                self.send_error(403, "ask by 127.0.0.1")
            elif self.path != "/":
                self.send_error(404)
            else:
                self._answer()

        def do_HEAD(self) -> None:
            self.do_GET()

        def _answer(self) -> None:
            try:
                tag, page = watched.page()
            except (OSError, Refused) as error:
                self.send_error(503, "the run directory cannot be read", str(error))
                return
            unchanged = self.headers.get("If-None-Match") == tag
            self.send_response(304 if unchanged else 200)
            self.send_header("ETag", tag)
            self.send_header("Cache-Control", "no-store")
            if not unchanged:
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the reader has left
                self.wfile.write(b"" if unchanged or self.command == "HEAD" else page)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: the terminal shows the run."""

    return Handler


@contextlib.contextmanager
def served(runs: Sequence[Path], port: int = 0) -> Iterator[str]:
    """Serve the page of some runs on 127.0.0.1, from a thread, for as long as the context lasts; gives its address.

    Args:
        runs: run directories.
        port: 0 takes one that is free.

    Raises:
        Refused: a run directory is none, or the port cannot be had.
    """
    watched = Watched(runs)
    watched.page()  # so that what is wrong with the runs is said here
    try:
        server = ThreadingHTTPServer((ADDRESS, port), _handler(watched))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Refused(f"--port {port}: cannot be had ({reason}); give another, or 0 for one that is free") from None
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True)
    thread.start()
    try:
        yield f"http://{ADDRESS}:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
