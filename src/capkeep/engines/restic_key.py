"""A key of a restic repository for a password that nobody could guess, so that it opens at once.

restic makes trying a password slow, by as much as it measures on the machine (half a second, scrypt):
every start of restic pays that, and people's passwords need it. 32 random bytes do not: whoever tries
them needs more time than there is, however fast one try is. What a key is made of: restic's
doc/design.rst, "Keys, Encryption and MAC"; every version since 0.1 opens such a key, as each says itself
how slow it is. Sealing is AES-256 in counter mode and Poly1305-AES, by OpenSSL's libcrypto, which
Python's own hashlib is built on.
"""

import ctypes
import json
import os
import re
import time
from typing import Final

from capkeep.engines.base import NewKey

RANDOM_BYTES: Final = 32  # of a password that needs no slowness
# scrypt's cost (RFC 7914, 2): 1 MiB and some milliseconds.
N: Final = 1 << 10
R: Final = 8
P: Final = 1
SALT_BYTES: Final = 64  # restic's own (internal/crypto, saltLength)
IV_BYTES: Final = 16
LIBRARY: Final = "libcrypto.so.3"

# 32 bytes, as `base64` and `openssl rand -base64 32` write them. No passphrase of words looks like that.
_RANDOM: Final = re.compile(r"[A-Za-z0-9+/]{43}=", re.ASCII)


def is_random(password: str) -> bool:
    """Whether a password is written like 32 random bytes in base64."""
    return _RANDOM.fullmatch(password) is not None


def make_key(master: bytes, password: str) -> NewKey | None:
    """A key that opens what the others do; None where there is no libcrypto.

    `master` is what `restic cat masterkey` prints. Raises ValueError if it is something else.
    """
    import hashlib

    salt, iv = os.urandom(SALT_BYTES), os.urandom(IV_BYTES)
    plain = json.dumps(_parts(json.loads(master)), separators=(",", ":")).encode()
    secret = password.encode(errors="surrogateescape")
    derived = hashlib.scrypt(
        secret, salt=salt, n=N, r=R, p=P, maxmem=1 << 26, dklen=RANDOM_BYTES * 2
    )
    try:
        sealed = _seal(derived, iv, plain)
    except OSError:
        return None
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    content = json.dumps({
        "created": created, "username": "capkeep", "hostname": os.uname().nodename,
        "kdf": "scrypt", "N": N, "r": R, "p": P, "salt": _base64(salt), "data": _base64(sealed),
    }).encode()  # fmt: skip
    return NewKey("/keys/", hashlib.sha256(content).hexdigest(), content)


def _parts(master: object) -> dict[str, object]:
    """What opens the repository's data, and no more. Raises ValueError."""
    match master:
        case {"mac": {"k": str(k), "r": str(r)}, "encrypt": str(encrypt)}:
            return {"mac": {"k": k, "r": r}, "encrypt": encrypt}
    raise ValueError("that is not what `restic cat masterkey` prints")


def _seal(key: bytes, iv: bytes, plain: bytes) -> bytes:
    """As restic's doc/design.rst has it: IV, ciphertext, Poly1305-AES of that. Raises OSError."""
    library = ctypes.CDLL(LIBRARY)
    encrypt, k, r = key[:32], key[32:48], key[48:]
    sealed = _counter(library, encrypt, iv, plain)
    once = _counter(library, k, iv, bytes(16))  # AES of the IV itself
    tag = ctypes.create_string_buffer(16)
    size = ctypes.c_size_t()
    library.EVP_Q_mac.restype = ctypes.c_void_p
    done = library.EVP_Q_mac(
        None, b"POLY1305", None, None, None, r + once, ctypes.c_size_t(32), sealed,
        ctypes.c_size_t(len(sealed)), tag, ctypes.c_size_t(16), ctypes.byref(size),
    )  # fmt: skip
    if not done or size.value != len(tag.raw):
        raise OSError("no Poly1305")
    return iv + sealed + tag.raw


def _counter(library: ctypes.CDLL, key: bytes, iv: bytes, plain: bytes) -> bytes:
    """AES in counter mode (EVP_EncryptInit(3)). Raises OSError."""
    for name in ("EVP_CIPHER_CTX_new", "EVP_aes_128_ctr", "EVP_aes_256_ctr"):
        getattr(library, name).restype = ctypes.c_void_p
    cipher = library.EVP_aes_256_ctr() if len(key) == 32 else library.EVP_aes_128_ctr()
    context = ctypes.c_void_p(library.EVP_CIPHER_CTX_new())
    try:
        out, size = ctypes.create_string_buffer(len(plain)), ctypes.c_int()
        begun = library.EVP_EncryptInit_ex(context, ctypes.c_void_p(cipher), None, key, iv)
        done = begun and library.EVP_EncryptUpdate(
            context, out, ctypes.byref(size), plain, len(plain)
        )
        if not done:
            raise OSError("no AES")
        return out.raw[: size.value]
    finally:
        library.EVP_CIPHER_CTX_free(context)


def _base64(data: bytes) -> str:
    import base64

    return base64.b64encode(data).decode()
