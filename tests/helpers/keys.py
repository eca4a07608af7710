"""Keys that sign, made anew, for several files of tests. Needs the extra `sign`."""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

Pair = tuple[Path, Path]
"""The files of a private key and of its public half."""


def make_keys(folder: Path, name: str, curve: ec.EllipticCurve | None = None) -> Pair:
    """A new pair, `NAME.pem` and `NAME.pub`; without a curve, on P-256."""
    return write_keys(folder, name, ec.generate_private_key(curve or ec.SECP256R1()))


def write_keys(folder: Path, name: str, private: PrivateKeyTypes) -> Pair:
    """Write a pair, `NAME.pem` and `NAME.pub`."""
    secret, public = folder / f"{name}.pem", folder / f"{name}.pub"
    secret.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return secret, public


def encrypt_key(secret: Path, password: str) -> Path:
    """The same private key, encrypted, beside it."""
    private, target = load_pem_private_key(secret.read_bytes(), None), secret.with_name("locked.pem")
    sealed = BestAvailableEncryption(password.encode())
    target.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, sealed))
    return target
