"""Somebody else's code, run in this process: with a time limit, its output kept, its calls watched. It is no sandbox."""

from __future__ import annotations

import contextlib
import ctypes
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any

SHOWN = 120  # columns of a line that is no Python
LIMIT = 60.0  # seconds that an answer may take
GRADIENTS = re.compile(r"(_vjp|_jvp|_vjp_jvp)$|^grad_")
DIFFERENTIATES = {"torch.autograd": {"grad", "backward"}, "torch._tensor": {"backward"}}
DIFFERENTIATORS = ("torch._functorch", "torch.autograd.functional", "torch.autograd.forward_ad", "gradderiv.numbers.dual")  # fmt: skip


class TimeIsUp(BaseException):
    """The answer took too long."""


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise :class:`TimeIsUp` in this thread when the time is up; a call into C ends first."""
    thread, lock = threading.get_ident(), threading.Lock()
    running, fired = True, False

    def stop() -> None:
        nonlocal fired
        with lock:
            if running:
                fired = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(TimeIsUp))

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    arrived = False
    try:
        yield
    except TimeIsUp:
        arrived = True
        raise
    finally:
        with lock:
            running = False
        timer.cancel()
        while fired and not arrived:  # on its way: it must not arrive in the code that follows
            time.sleep(0.01)


class Watch:
    """Whether a function that differentiates was called.

    Attributes:
        call: the name of the first one, or "".
    """

    call = ""

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        before = sys.getprofile()
        sys.setprofile(self._seen)
        threading.setprofile(self._seen)  # of threads that begin meanwhile
        try:
            yield
        finally:
            threading.setprofile(None)
            sys.setprofile(before)

    def _seen(self, frame: FrameType, event: str, arg: Any) -> None:
        if event == "c_call" and getattr(arg, "__name__", "") == "run_backward" and not self.call:
            self.call = "the engine of autograd"
        if event != "call" or self.call:
            return
        name, home = frame.f_code.co_name, str(frame.f_globals.get("__name__", ""))
        gradient = home.startswith(("gradderiv.rules", "gradderiv.functional")) and GRADIENTS.search(name)
        if gradient or name in DIFFERENTIATES.get(home, ()) or home.startswith(DIFFERENTIATORS):
            self.call = f"{home}.{name}"


def raised(error: BaseException, file: str) -> str:
    """An exception of the answer in words: its line in ``file``, its type, its text."""
    if isinstance(error, SyntaxError):
        shown = f"\n  {error.text.strip()[:SHOWN]}" if error.text else ""
        where = f"line {error.lineno}: " if error.lineno else ""
        return f"{where}SyntaxError: {error.msg}{shown}"
    lines = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    where = f"line {lines[-1].lineno}: {lines[-1].line}\n" if lines else ""
    try:
        said = str(error)
    except Exception:  # an exception of the answer's own
        said = ""
    return f"{where}{type(error).__name__}: {said}".rstrip(": ")
