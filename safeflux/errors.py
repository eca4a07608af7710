"""What safeflux raises on bad input: one base class, one child for each thing that can be wrong.

Every message says where (file, key or site), what was expected, what was got, and what to do next. Bad input never
raises anything else; `assert` is for our own invariants only. The command line prints these without a traceback. Its
exit code is 3 where the cause is an `OSError`, an `ImportError` or a `StoreError` (something is missing), else 1.
"""


class SafeFluxError(Exception):
    """Base of all errors that safeflux raises on bad input."""


class PolicyError(SafeFluxError, ValueError):
    """A policy file cannot be read or does not follow the schema."""


class MaskFileError(SafeFluxError, ValueError):
    """A mask file is damaged, or is not a mask file of a format that this version reads."""


class MaskMismatchError(SafeFluxError, ValueError):
    """A mask set does not fit: another base model, unknown sites, or wrong widths."""


class StoreError(SafeFluxError, LookupError):
    """A mask set that a policy names is not in the store."""


class SignatureError(SafeFluxError, ValueError):
    """A signature is missing, malformed, made with another key, or made for other bytes."""


class ModelError(SafeFluxError, TypeError):
    """The object is not a FLUX transformer, nor a pipeline that holds one."""


class ApplyError(SafeFluxError, RuntimeError):
    """Writing the masks into the model failed; the model was restored."""


class BakeError(SafeFluxError, RuntimeError):
    """A guarded file was not written, or is not what it should be; existing files are unchanged."""


class AuditError(SafeFluxError, ValueError):
    """A file is not an audit log, or cannot be read or appended to."""


class ConfigError(SafeFluxError, ValueError):
    """A training or evaluation configuration is not valid."""


class TrainError(SafeFluxError, RuntimeError):
    """A training run cannot continue; its last checkpoint is intact."""
