"""Signatures of files and folders with keys on disk; no network is used. Needs the extra `sign`.

A signature is a Sigstore bundle of the package model-signing, next to the signed file: `weapons.safetensors.sig`. It
holds the name of the file, or of every file in the folder, and their sha256. Other tools that read such bundles can
check it too: `model_signing verify key FILE --signature FILE.sig --public_key PUB.pem`.

Limits: a signature has no date and no revision. An older mask that was signed with the same key stays valid, so anyone
who can write to the store can put it back. A lock (`safeflux policy lock`, `guard(lock=...)`) names each mask file by
its digest and prevents that.
"""

import base64
import hashlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

from safeflux.disk.atomic import write_atomically
from safeflux.disk.canonical import parse_mapping
from safeflux.errors import SignatureError
from safeflux.evidence.keys import PathLike, PublicKey, check_private_key, read_bytes, read_public_key, sign_extra

if TYPE_CHECKING:
    from model_signing.hashing import Config as HashingConfig

SUFFIX = ".sig"
_AGAIN = "sign it with `safeflux mask sign`"


def signature_path(path: PathLike) -> Path:
    """The path of a signature: next to the file or folder, its name with `.sig` added."""
    target = Path(path)
    target = target if target.name not in ("", "..") else target.resolve()
    return target.with_name(target.name + SUFFIX)


def sign_file(path: PathLike, private_key: PathLike, *, password: str | None = None) -> Path:
    """Sign a file, or a folder with all files in it, and write the signature next to it.

    Args:
        path: The file or folder. Links are refused, since their targets could change.
        private_key: A PEM file with an elliptic-curve key, such as P-256.
        password: Password of the key, if it is encrypted.

    Returns:
        The path of the signature, which was written atomically; an older one is replaced.

    Raises:
        SignatureError: The key or the file cannot be read, or the signature cannot be written.
    """
    target, secret = signature_path(path), password.encode() if password else None
    check_plain(Path(path))
    check_private_key(private_key, secret)
    with sign_extra():
        from model_signing.signing import Config
    # model-signing declares a str, and passes it to a function that only takes bytes.
    config = Config().use_elliptic_key_signer(private_key=private_key, password=cast(Any, secret))
    config.set_hashing_config(_hashing())
    with _scratch({}) as folder:
        written = folder / "signature"
        try:
            config.sign(path, written)
            write_atomically(target, written.read_bytes())
        except OSError as error:
            raise SignatureError(f"{target}: cannot be written ({error}); nothing was left behind") from error
    return target


def verify_file(path: PathLike, public_key: PathLike, signature: PathLike | None = None) -> str:
    """Check that a file or folder is what was signed: the same names and bytes, nothing more or less.

    Args:
        path: The file or folder. A signature inside the folder does not count.
        public_key: A PEM file.
        signature: The signature, if it is not next to `path`.

    Returns:
        The digest of the key, as a policy lists it.

    Raises:
        SignatureError: It differs; or the key or the signature is missing or malformed.
    """
    target, key = Path(path), read_public_key(public_key)
    check_plain(target)
    bundle = _read_bundle(signature_path(path) if signature is None else Path(signature), target)
    if bundle.hint != key.hint:
        raise SignatureError(
            f"{bundle.path}: was not made with the key of {os.fspath(public_key)} (sha256:{key.digest}); pass the "
            "public key of the signer"
        )
    _verify(target, bundle, key)
    return key.digest


def check_signed(path: PathLike, data_sha256: str, policy_keys: Collection[str], key_files: Iterable[PathLike]) -> str:
    """Check that bytes that were read from a file are signed with a key that a policy lists.

    The signature is next to the file. The file is read once more and must have the given digest, so a file that was
    replaced since is refused.

    Args:
        path: The file.
        data_sha256: Digest of the bytes that were read from it.
        policy_keys: Digests of the keys that the policy lists.
        key_files: Public keys, PEM. Keys that the policy does not list are ignored.

    Returns:
        The digest of the key that signed.

    Raises:
        SignatureError: They are not, and the message says what to do.
    """
    listed = {key.hint: key for key in map(read_public_key, key_files) if key.digest in policy_keys}
    if not listed:
        raise SignatureError(
            f"{os.fspath(path)}: must be signed with a key that the policy lists (sha256 "
            f"{' or '.join(sorted(policy_keys))}), and none of these was given; pass its PEM file: `keys=[...]` in "
            "Python, --key on the command line"
        )
    bundle = _read_bundle(signature_path(path), Path(path))
    if bundle.hint not in listed:
        given = ", ".join(os.fspath(key.path) for key in listed.values())
        raise SignatureError(
            f"{bundle.path}: was made with none of the given keys that the policy lists ({given}); {_AGAIN}"
        )
    data = read_bytes(path)
    if hashlib.sha256(data).hexdigest() != data_sha256:
        raise SignatureError(f"{os.fspath(path)}: changed while it was read; stop what writes to it, and try again")
    name = Path(path).name
    with _scratch({name: data}) as folder:
        _verify(folder / name, bundle, listed[bundle.hint])
    return listed[bundle.hint].digest


@contextmanager
def _scratch(files: Mapping[str, bytes]) -> Iterator[Path]:
    """A temporary folder with these files: model-signing takes paths, and must see the bytes that were checked."""
    with ExitStack() as stack:
        try:
            folder = Path(stack.enter_context(TemporaryDirectory()))
            for name, data in files.items():
                (folder / name).write_bytes(data)
        except OSError as error:
            raise SignatureError(f"cannot write a temporary file ({error}); set TMPDIR to a writable folder") from error
        yield folder


@dataclass(frozen=True)
class _Bundle:
    """A signature, read once. Its content is not to be trusted before it is verified."""

    path: Path
    data: bytes
    hint: str
    """Of the key that made it."""
    name: str
    """Of the file or folder that was signed."""
    files: Mapping[str, str]
    """The sha256 of each file, by its path in the folder; for a single file, by `.`."""


def _read_bundle(path: Path, signed: Path) -> _Bundle:
    if not path.is_file():
        raise SignatureError(f"{signed}: is not signed, {path} does not exist; {_AGAIN}")
    data = read_bytes(path)
    try:
        bundle = parse_mapping(data)
        envelope, material = bundle["dsseEnvelope"], bundle["verificationMaterial"]
        # Each of these must be unambiguous, or model-signing could read one and we another.
        _expect(set(bundle), {"mediaType", "verificationMaterial", "dsseEnvelope"})
        _expect(set(envelope), {"payload", "payloadType", "signatures"})
        statement = parse_mapping(base64.b64decode(envelope["payload"], validate=True))
        form, resources = statement["predicate"]["serialization"], statement["predicate"]["resources"]
        _expect((form["method"], form["hash_type"]), ("files", "sha256"))
        hint, name = str(material["publicKey"]["hint"]), str(statement["subject"][0]["name"])
        return _Bundle(path, data, hint, name, {one["name"]: one["digest"] for one in resources})
    except (ValueError, LookupError, TypeError) as error:
        raise _malformed(path, error) from error


def _expect(got: object, wanted: object) -> None:
    if got != wanted:
        raise ValueError(f"expected {wanted}, got {got}")


def _malformed(path: Path, error: Exception) -> SignatureError:
    return SignatureError(f"{path}: is not a signature made with a key ({error!r:.200}); {_AGAIN}")


def check_plain(path: Path) -> None:
    """Check that a path is a file or a folder, and without links, so that it can be signed.

    Raises:
        SignatureError: It does not exist, or is or holds something else.
    """
    if not os.path.lexists(path):
        raise SignatureError(f"{path}: does not exist; expected a file or a folder") from FileNotFoundError(path)
    for one in (path, *path.rglob("*")):
        if one.is_symlink() or not (one.is_file() or one.is_dir()):
            raise SignatureError(f"{one}: expected a file or a folder, not a link; check the path")


def _hashing(ignored: Iterable[str] = ()) -> "HashingConfig":
    """Every file counts, even those of Git, which model-signing ignores by default."""
    with sign_extra():
        from model_signing.hashing import Config
    return Config().set_ignored_paths(paths=ignored, ignore_git_paths=False)


def _verify(path: Path, bundle: _Bundle, key: PublicKey) -> None:
    """Check a file or folder with a signature that names this key."""
    with sign_extra():
        from cryptography.exceptions import InvalidSignature
        from model_signing.verifying import Config
    ignored = [os.path.relpath(bundle.path, path)] if bundle.path.resolve().is_relative_to(path.resolve()) else []
    with _scratch({"key.pem": key.pem, "signature": bundle.data}) as folder:
        config = Config().use_elliptic_key_verifier(public_key=folder / "key.pem")
        try:
            config.set_hashing_config(_hashing(ignored)).verify(path, folder / "signature")
        except InvalidSignature as error:
            raise SignatureError(
                f"{bundle.path}: was edited, or not made with the key that it names; {_AGAIN}"
            ) from error
        except OSError as error:
            raise SignatureError(f"{path}: cannot be read ({error}); check the path") from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            if str(error).startswith("Signature mismatch"):
                raise _changed(path, bundle, _hashing(ignored)) from error
            raise _malformed(bundle.path, error) from error
    if path.is_file() and bundle.name != path.name:
        raise SignatureError(
            f"{bundle.path}: is for a file named {bundle.name!r}, not {path.name!r}; rename the file, or {_AGAIN}"
        )


def _changed(path: Path, bundle: _Bundle, hashing: "HashingConfig") -> SignatureError:
    """The error that lists what differs from the signed files."""
    was, now = (
        bundle.files,
        {one.identifier: one.digest.digest_hex for one in hashing.hash(path).resource_descriptors()},
    )
    groups = {
        "changed": sorted(name for name in was.keys() & now.keys() if was[name] != now[name]),
        "missing": sorted(was.keys() - now.keys()),
        "not signed": sorted(now.keys() - was.keys()),
    }
    differences = "; ".join(f"{what}: {', '.join(names)}" for what, names in groups.items() if names)
    differences = "it changed" if groups["changed"] == ["."] else differences
    return SignatureError(f"{path}: is not what was signed ({bundle.path}): {differences}. Fetch it again, or {_AGAIN}")
