"""Keys that sign, and keys that check: elliptic-curve keys in PEM files. Needs the extra `sign`."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from safeflux.disk.reading import read_regular
from safeflux.errors import SignatureError

PathLike = str | os.PathLike[str]
_MAX_BYTES = 1 << 30
"""Largest file that is read whole: a mask file."""
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_MAKE_KEY = "make one with: openssl ecparam -name prime256v1 -genkey -noout -out KEY.pem"
_MAKE_PUBLIC = "make it with: openssl pkey -in KEY.pem -pubout -out PUB.pem"


@dataclass(frozen=True)
class PublicKey:
    """A public key, read once."""

    path: PathLike
    pem: bytes
    digest: str
    """The sha256 of the key's DER SubjectPublicKeyInfo, as policies list it."""

    @property
    def hint(self) -> str:
        """The identifier of the key in a signature."""
        return hashlib.sha256(self.pem).hexdigest()


@contextmanager
def sign_extra() -> Iterator[None]:
    """A context for imports of the extra's packages.

    Raises:
        SignatureError: One is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise SignatureError(f"signatures need more ({error}); get it with: pip install 'safeflux[sign]'") from error


def read_bytes(path: PathLike) -> bytes:
    """Read a file once, so that the bytes that are checked are those that are used.

    Raises:
        SignatureError: It cannot be read.
    """
    try:
        return read_regular(path, _MAX_BYTES)
    except OSError as error:
        raise SignatureError(f"{os.fspath(path)}: cannot be read ({error.strerror}); check the path") from error


def read_public_key(path: PathLike) -> PublicKey:
    """Read a public key.

    Raises:
        SignatureError: The file cannot be read, or is not an elliptic-curve key in PEM.
    """
    with sign_extra():
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    data = read_bytes(path)
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SignatureError(f"{os.fspath(path)}: expected a public key in PEM ({error}); {_MAKE_PUBLIC}") from error
    return _public(path, key)


def check_private_key(path: PathLike, password: bytes | None) -> PublicKey:
    """Check that a private key can sign, and return its public key.

    Raises:
        SignatureError: The file cannot be read, is not an elliptic-curve key in PEM, or the password is wrong.
    """
    with sign_extra():
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    data = read_bytes(path)
    try:
        private = load_pem_private_key(data, password)
    except TypeError as error:  # a password is missing, or not needed
        how = "give none" if password else "give it (--password, or SAFEFLUX_KEY_PASSWORD)"
        what = f"{str(error)[0].lower()}{str(error)[1:].rstrip('.')}"
        raise SignatureError(f"{os.fspath(path)}: {what}; {how}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        if password and "password" in str(error).lower():
            raise SignatureError(f"{os.fspath(path)}: the password is not that of this key; give it again") from error
        raise SignatureError(f"{os.fspath(path)}: expected a private key in PEM ({error}); {_MAKE_KEY}") from error
    return _public(path, private.public_key())


def _public(path: PathLike, key: Any) -> PublicKey:
    with sign_extra():
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
    curve = getattr(getattr(key, "curve", None), "name", type(key).__name__)
    if curve not in _CURVES:
        raise SignatureError(f"{os.fspath(path)}: expected a key on the curve P-256, got {curve}; {_MAKE_KEY}")
    pem, der = (key.public_bytes(form, PublicFormat.SubjectPublicKeyInfo) for form in (Encoding.PEM, Encoding.DER))
    return PublicKey(path, pem, hashlib.sha256(der).hexdigest())
