"""What can go wrong between the two ends, and the root of every error in the project.

::

    NarrowcastError                    exit code 1 unless a subclass says otherwise
    ├── MissingDependencyError         an optional package is not installed
    ├── ConfigError            (2)     a recipe, settings file or option that cannot be
    └── TransportError
        ├── FrameError                 an image or array that is no frame
        ├── TablesError                tables that are no tables
        ├── SymbolsError               symbols of the wrong shape, type or alphabet
        ├── PayloadError               a payload that does not decode
        ├── PacketError                bytes that are no packet
        │   ├── PacketTruncatedError
        │   ├── PacketTrailingError
        │   ├── PacketChecksumError
        │   ├── PacketVersionError
        │   ├── PacketKindError
        │   ├── PacketCodecError
        │   └── PacketFieldError       a field outside its limits
        ├── KeyFileError               a key file that is missing, unreadable or no key
        ├── CertificateError           a certificate or CA that is missing, unreadable, or does not fit
        ├── TokenError                 a token, or a file of them, that cannot be used
        ├── RevocationError            a revocation list that is none
        ├── SealError                  sealed bytes that do not open
        ├── AddressError       (2)     not HOST:PORT
        └── BundleError        (3)     a bundle that must not be used
            ├── NotABundleError
            ├── ManifestError
            ├── NewerSchemaError
            ├── MissingPartError
            ├── SurplusPartError
            ├── PartHashError
            ├── UnsignedBundleError
            ├── BadSignatureError
            ├── UntrustedKeyError
            ├── UnsafePathError
            ├── OversizedPartError     a decompression bomb, or a part over its limit
            ├── OnnxError              a part that is no ONNX model
            ├── ExternalDataError
            └── UnknownOperatorDomainError

A message names the object, what was seen and what to do about it, in one line.
"""

from __future__ import annotations

from typing import ClassVar


class NarrowcastError(Exception):
    """Root of all errors that narrowcast raises on purpose. ``exit_code`` is the command line's."""

    exit_code: ClassVar[int] = 1


class MissingDependencyError(NarrowcastError):
    """An optional package that the call needs cannot be imported."""

    def __init__(self, need: str, package: str, hint: str, cause: BaseException) -> None:
        seen = "is not installed" if isinstance(cause, ModuleNotFoundError) else f"does not import: {cause}"
        super().__init__(f"{need} needs {package}, which {seen}; {hint}")


class ConfigError(NarrowcastError):
    """A recipe, settings file or option value that cannot be."""

    exit_code = 2


class TransportError(NarrowcastError):
    """Root of what both ends share: frames, symbols, packets, bundles."""


class FrameError(TransportError):
    """An image or array that cannot be a frame."""


class TablesError(TransportError):
    """Bytes or arrays that are no coding tables."""


class SymbolsError(TransportError):
    """Symbols of the wrong shape, type or alphabet."""


class PayloadError(TransportError):
    """A payload that does not decode to a frame's symbols."""


class PacketError(TransportError):
    """Bytes that are no packet."""


class PacketTruncatedError(PacketError):
    """Fewer bytes than the packet's header announces."""


class PacketTrailingError(PacketError):
    """More bytes than the packet's header announces."""


class PacketChecksumError(PacketError):
    """The checksum over header and payload does not match."""


class PacketVersionError(PacketError):
    """A packet of a version or form that this release does not read."""


class PacketKindError(PacketError):
    """A packet of an unknown kind."""


class PacketCodecError(PacketError):
    """A packet with an unknown codec."""


class PacketFieldError(PacketError):
    """A field outside its limits."""


class KeyFileError(TransportError):
    """A key file that is missing, unreadable or not a key."""


class CertificateError(TransportError):
    """A certificate or certificate authority that is missing, unreadable, or does not fit."""


class TokenError(TransportError):
    """A token, or a file of them, that cannot be used."""


class RevocationError(TransportError):
    """A revocation list that is none."""


class SealError(TransportError):
    """Sealed bytes that are damaged, or for another key."""


class AddressError(TransportError):
    """Not an address of the form HOST:PORT."""

    exit_code = 2


class BundleError(TransportError):
    """A bundle that must not be used."""

    exit_code = 3


class NotABundleError(BundleError):
    """The file is missing, truncated or of another kind."""


class ManifestError(BundleError):
    """The manifest is no valid manifest of this schema."""


class NewerSchemaError(BundleError):
    """The manifest's schema is newer than this release reads."""


class MissingPartError(BundleError):
    """A part that the role needs is not in the file."""


class SurplusPartError(BundleError):
    """The file holds something that the manifest does not list for the role."""


class PartHashError(BundleError):
    """A part's bytes are not those that the manifest names."""


class UnsignedBundleError(BundleError):
    """The bundle carries no signature."""


class BadSignatureError(BundleError):
    """The signature is not one of this manifest."""


class UntrustedKeyError(BundleError):
    """The bundle is signed, with a key that is not trusted here."""


class UnsafePathError(BundleError):
    """A part's name tries to leave the bundle."""


class OversizedPartError(BundleError):
    """A part is, or unpacks to, more than it says or than is allowed."""


class OnnxError(BundleError):
    """A part that should be an ONNX model is none."""


class ExternalDataError(BundleError):
    """An ONNX part refers to data outside itself."""


class UnknownOperatorDomainError(BundleError):
    """An ONNX part uses operators of a domain that is not allowed."""
