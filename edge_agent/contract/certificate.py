"""Certificates, read without a connection: the name of the subject, and the end of their validity.

The standard library decodes only the certificate of a connection's peer, and a gateway has no library of cryptography,
so the few elements on the way to these facts are walked here (RFC 5280, section 4.1). Nothing is verified.
"""

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
_SEQUENCE, _SET, _OBJECT_ID, _UTC_TIME, _VERSION = 0x30, 0x31, 0x06, 0x17, 0xA0
_COMMON_NAME = bytes((0x55, 0x04, 0x03))  # 2.5.4.3
_ENCODINGS = {0x0C: "utf-8", 0x13: "ascii", 0x14: "latin-1", 0x16: "ascii", 0x1C: "utf-32-be", 0x1E: "utf-16-be"}
"""The tag of a string -> how it is encoded."""


@dataclass(frozen=True)
class Certificate:
    """The certificate of a file; of a chain, the first, whose key the owner of the file has."""

    common_name: str  # the first CN of the subject, by which a broker knows a client; "" without one
    not_after_s: float  # Unix seconds

    @classmethod
    def read(cls, pem: str) -> "Certificate":
        """Return the first certificate in ``pem``; ValueError when it holds none."""
        start = pem.find(_BEGIN)
        if start < 0 or _END not in pem[start:]:
            raise ValueError("no BEGIN CERTIFICATE")
        der = ssl.PEM_cert_to_DER_cert(pem[start : pem.index(_END, start) + len(_END)])
        _, certificate = _first(der, _SEQUENCE)
        _, inner = _first(certificate, _SEQUENCE)
        elements = list(islice(_elements(inner), 7))
        if elements and elements[0][0] == _VERSION:
            elements = elements[1:]
        if len(elements) < 5:  # serialNumber, signature, issuer, validity, subject
            raise ValueError("cut short")
        (_, validity), (_, subject) = elements[3:5]
        return cls(_common_name(subject), _time(*_nth(validity, 1)))


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of the elements that lie one behind the other."""
    at = 0
    while at < len(der):
        if at + 2 > len(der):
            raise ValueError("cut short")
        tag, length, begin = der[at], der[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            begin, length = begin + size, int.from_bytes(der[begin : begin + size])
        if begin + length > len(der):
            raise ValueError("cut short")
        yield tag, der[begin : begin + length]
        at = begin + length


def _nth(der: bytes, n: int) -> tuple[int, bytes]:
    for element in islice(_elements(der), n, None):
        return element
    raise ValueError("cut short")


def _first(der: bytes, wanted: int) -> tuple[int, bytes]:
    tag, content = _nth(der, 0)
    if tag != wanted:
        raise ValueError(f"tag {tag:#04x} where {wanted:#04x} is expected")
    return tag, content


def _time(tag: int, content: bytes) -> float:
    form = "%y%m%d%H%M%SZ" if tag == _UTC_TIME else "%Y%m%d%H%M%SZ"
    return datetime.strptime(content.decode("ascii"), form).replace(tzinfo=UTC).timestamp()


def _common_name(subject: bytes) -> str:
    for tag, names in _elements(subject):
        for _, attribute in _elements(names) if tag == _SET else ():
            (kind, which), (form, text) = _nth(attribute, 0), _nth(attribute, 1)
            if kind == _OBJECT_ID and which == _COMMON_NAME:
                if form not in _ENCODINGS:
                    raise ValueError(f"the CN is no string but has the tag {form:#04x}")
                return text.decode(_ENCODINGS[form])
    return ""
