"""A process that may not write where permissions forbid it, even if root runs the tests."""

import ctypes
import os

_VERSION = 0x20080522
_DAC_OVERRIDE = 1  # the capability to write anywhere
_DAC_READ_SEARCH = 2  # the capability to read anything


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Capabilities(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def obey_permissions(*, read_too: bool = False) -> None:
    """Give up root's power to write anywhere, or to read too, for the rest of this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = _Header(version=_VERSION, pid=0), (_Capabilities * 2)()
    if libc.capget(ctypes.byref(header), sets) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    powers = 1 << _DAC_OVERRIDE | (1 << _DAC_READ_SEARCH if read_too else 0)
    for name in ("effective", "permitted", "inheritable"):
        setattr(sets[0], name, getattr(sets[0], name) & ~powers)
    if libc.capset(ctypes.byref(header), sets) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
