"""Statements signed with a key on disk: DSSE envelopes, as in-toto and its tools read them.

An envelope is JSON: the statement's bytes in base64, their type, and signatures over both (`pae`). The source is DSSE
1.0.2, https://github.com/secure-systems-lab/dsse/blob/v1.0.2/protocol.md. Needs the extra `sign`.
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from safeflux.disk.canonical import canonical_json, parse_mapping
from safeflux.errors import SignatureError
from safeflux.evidence.keys import PathLike, check_private_key, read_bytes, read_public_key, sign_extra

PAYLOAD_TYPE = "application/vnd.in-toto+json"
_HOW = "expected a DSSE envelope, as `safeflux audit statement --key` writes it"


def pae(payload: bytes) -> bytes:
    """The bytes that are signed (pre-authentication encoding): type and payload, each after its length.

    Examples:
        >>> pae(b"{}")
        b'DSSEv1 28 application/vnd.in-toto+json 2 {}'
    """
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def sign_statement(
    statement: Mapping[str, Any], private_key: PathLike, *, password: str | None = None
) -> dict[str, Any]:
    """Return an envelope with a statement and its signature (ECDSA, SHA-256).

    Args:
        statement: An in-toto Statement (`make_statement`).
        private_key: A PEM file with an elliptic-curve key, such as P-256.
        password: Password of the key, if it is encrypted.

    Raises:
        SignatureError: The key cannot be read.
    """
    secret = password.encode() if password else None
    public = check_private_key(private_key, secret)
    with sign_extra():
        from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    key = load_pem_private_key(read_bytes(private_key), secret)
    assert isinstance(key, EllipticCurvePrivateKey)  # `check_private_key` accepts no other
    payload = canonical_json(statement).encode()
    signature = {"keyid": public.digest, "sig": _encoded(key.sign(pae(payload), ECDSA(SHA256())))}
    return {"payload": _encoded(payload), "payloadType": PAYLOAD_TYPE, "signatures": [signature]}


def check_statement(envelope: Mapping[str, Any], public_key: PathLike) -> dict[str, Any]:
    """Check an envelope's signature, and return its statement.

    Args:
        envelope: As `sign_statement` returns it.
        public_key: A PEM file.

    Raises:
        SignatureError: It is not an envelope, or no signature in it was made with this key.
    """
    public = read_public_key(public_key)
    with sign_extra():
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    key = load_pem_public_key(public.pem)
    assert isinstance(key, EllipticCurvePublicKey)
    payload, signatures = _parts(envelope)
    for signature in signatures:
        try:
            key.verify(signature, pae(payload), ECDSA(SHA256()))
        except InvalidSignature:
            continue
        try:
            return parse_mapping(payload)
        except ValueError as error:
            raise SignatureError(f"the signed statement is not a JSON object ({error}); {_HOW}") from error
    raise SignatureError(
        f"no signature of this statement was made with the key of {public_key} (sha256:{public.digest}), or the "
        "statement was changed since; pass the public key of the signer"
    )


def _parts(envelope: Mapping[str, Any]) -> tuple[bytes, list[bytes]]:
    """The payload and the signatures, decoded."""
    kind = envelope.get("payloadType")
    if kind != PAYLOAD_TYPE:
        raise SignatureError(f"payloadType: expected {PAYLOAD_TYPE!r}, got {kind!r}; {_HOW}")
    try:
        payload = base64.b64decode(envelope["payload"], validate=True)
        return payload, [base64.b64decode(each["sig"], validate=True) for each in envelope["signatures"]]
    except (KeyError, TypeError, AttributeError, binascii.Error, ValueError) as error:
        raise SignatureError(f"payload or signatures cannot be decoded ({error}); {_HOW}") from error


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()
