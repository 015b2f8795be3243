"""Compact codes of a teacher's readouts: a linear autoencoder, and few bits for each number."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
from safetensors.numpy import save_file

from gemkit.errors import GemkitError
from gemkit.runs.files import replacing

BITS = (4, 8, 32)
KEEPS = ("example", "user")
LIMITS = {4: 2.5, 8: 4.0}
"""Largest number of a code in steps of its deviation: about where rounding and clipping of normal values cost the
same."""

RIDGE = 1e-3


class Coding(NamedTuple):
    """Codes, as somebody asks for them.

    Attributes:
        width: Numbers in a code.
        bits: Of each number as it is stored: one of BITS.
        of: What codes keep, one of KEEPS: as much as they can of an "example", or what examples of one "user" share.
    """

    width: int
    bits: int
    of: str


class CodeSpace(NamedTuple):
    """A map from readouts to codes, whose numbers have deviation 1 on the examples that it was fitted to.

    Attributes:
        mean: (R,) float32, what is taken from a readout first.
        matrix: (R, K) float32.
        shift: (K,) float32, added at the end; 0 unless the space was anchored.
        bits: Of each number as it is stored: 4, 8, or 32 (a float).
        of: What it keeps: that of an "example" (`fit`), or of the "user" (`fit_users`).
    """

    mean: np.ndarray
    matrix: np.ndarray
    shift: np.ndarray
    bits: int
    of: str

    @property
    def width(self) -> int:
        """K."""
        return int(self.matrix.shape[1])

    @property
    def coding(self) -> Coding:
        """What somebody who wants such codes asks for."""
        return Coding(self.width, self.bits, self.of)

    @property
    def num_bytes(self) -> int:
        """Of one stored code."""
        return -(-self.width * self.bits // 8)

    def encode(self, readouts: np.ndarray) -> np.ndarray:
        """Shape: (n, R) -> (n, K) float32."""
        codes: np.ndarray = (readouts - self.mean) @ self.matrix + self.shift
        return codes

    def pack(self, codes: np.ndarray) -> np.ndarray:
        """Codes as they are stored. Shape: (n, K) -> (n, num_bytes) uint8."""
        stored: np.ndarray
        if self.bits == 32:
            stored = np.ascontiguousarray(codes, np.float32).view(np.uint8)
            return stored
        largest = 2 ** (self.bits - 1) - 1
        levels = np.rint(codes / LIMITS[self.bits] * largest).clip(-largest, largest).astype(np.int8)
        unsigned: np.ndarray = (levels.astype(np.int16) + largest).astype(np.uint8)
        if self.bits == 8:
            return unsigned
        padded = np.pad(unsigned, ((0, 0), (0, self.width % 2)))
        stored = padded[:, ::2] | (padded[:, 1::2] << 4)
        return stored

    def unpack(self, stored: np.ndarray) -> np.ndarray:
        """What `pack` stored, up to rounding. Shape: (n, num_bytes) uint8 -> (n, K) float32."""
        if self.bits == 32:
            return np.ascontiguousarray(stored).view(np.float32)
        largest = 2 ** (self.bits - 1) - 1
        if self.bits == 4:
            stored = np.stack([stored & 15, stored >> 4], axis=2).reshape(len(stored), -1)[:, : self.width]
        codes: np.ndarray = (stored.astype(np.float32) - largest) * np.float32(LIMITS[self.bits] / largest)
        return codes

    def save(self, path: Path) -> None:
        """Writes the space as a safetensors file."""
        arrays = {"mean": self.mean, "matrix": self.matrix, "shift": self.shift}
        with replacing(path) as temporary:
            save_file({n: np.ascontiguousarray(a, np.float32) for n, a in arrays.items()}, temporary)

    @classmethod
    def load(cls, path: Path, width: int, bits: int, of: str) -> CodeSpace:
        """What `save` wrote.

        Raises:
            GemkitError: There is none, or it has another width.
        """
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                found: dict[str, Any] = {name: file.get_tensor(name) for name in ("mean", "matrix", "shift")}
            if found["matrix"].shape != (len(found["mean"]), width) or found["shift"].shape != (width,):
                raise ValueError("its shapes do not fit")
        except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
            raise GemkitError(f"cannot read the codes' space: {error}", where=str(path), fix="teach anew") from error
        return cls(**found, bits=bits, of=of)


def fit(readouts: np.ndarray, width: int, bits: int) -> CodeSpace:
    """The best linear autoencoder of `width` numbers: principal components, each scaled to deviation 1.

    Paper: Baldi and Hornik (1989): a linear autoencoder's best code spans the first principal components.
    Differs: whitened, so that every number is stored with the same step.

    Shape: readouts (n, R).

    Raises:
        GemkitError: A readout has fewer than `width` numbers, or there are fewer examples.
    """
    wide = _wide_enough(readouts, width)
    centred = wide - wide.mean(axis=0)
    return _space(wide, _leading(_covariance(centred), width), bits, "example")


def fit_users(readouts: np.ndarray, users: np.ndarray, width: int, bits: int) -> CodeSpace:
    """The directions along which two examples of one user vary together most.

    A readout says much about the item, which the user's next example does not share. The covariance of two examples of
    one user has nothing of it. (Not as a share of all variance, as Fisher's discriminants: those are the user's own
    features, which stay the same from example to example, and which a student has already.)

    Paper: none; principal components of the covariance within pairs, unbiased by what the two do not share.
    Differs: each number is scaled to deviation 1 over examples.

    Shape: readouts (n, R), users (n,).

    Raises:
        GemkitError: As `fit`, or no user has two examples.
    """
    wide = _wide_enough(readouts, width)
    _, owner, counts = np.unique(users, return_inverse=True, return_counts=True)
    often = counts[owner] > 1
    if not often.any():
        raise GemkitError(
            "no user has two examples among those that codes are fitted to", where="--codes", fix="--codes-of example"
        )
    centred = (wide - wide[often].mean(axis=0)) * often[:, None]
    sums = np.zeros((len(counts), wide.shape[1]))
    np.add.at(sums, owner, centred)
    others = np.maximum(counts - 1, 1)  # with how many each example makes a pair: a user weighs as its examples do
    pairs = (sums / others[:, None]).T @ sums - (centred / others[owner][:, None]).T @ centred
    return _space(wide, _leading(pairs / often.sum(), width), bits, "user")


def _wide_enough(readouts: np.ndarray, width: int) -> np.ndarray:
    if width > min(readouts.shape):
        raise GemkitError(
            f"codes of {width} numbers from {len(readouts)} readouts of {readouts.shape[1]}",
            where="--codes",
            allowed=f"at most {min(readouts.shape)}",
        )
    return readouts.astype(np.float64)


def _covariance(centred: np.ndarray) -> np.ndarray:
    """Shape: (n, R) -> (R, R)."""
    found: np.ndarray = centred.T @ centred / max(len(centred) - 1, 1)
    return found


def _leading(covariance: np.ndarray, width: int) -> np.ndarray:
    """Eigenvectors of the largest eigenvalues. Shape: (R, R) -> (R, width)."""
    directions: np.ndarray = np.linalg.eigh(covariance)[1][:, ::-1][:, :width]
    # The sign of an eigenvector is the library's choice; its largest entry shall be positive.
    directions *= np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(width)])
    return directions


def _space(wide: np.ndarray, directions: np.ndarray, bits: int, of: str) -> CodeSpace:
    """Projections on directions, each scaled to deviation 1 on the examples."""
    mean = wide.mean(axis=0)
    deviations = ((wide - mean) @ directions).std(axis=0)
    matrix = directions / np.maximum(deviations, 1e-5 * deviations.max() + 1e-30)
    shift = np.zeros(matrix.shape[1], np.float32)
    return CodeSpace(mean.astype(np.float32), matrix.astype(np.float32), shift, bits, of)


def anchored(readouts: np.ndarray, codes: np.ndarray, bits: int, of: str) -> CodeSpace:
    """The space that maps another teacher's readouts as near as it can to existing codes of the same examples.

    Ridge regression: a refreshed teacher goes on in the code space that students have learned to read.

    Shape: readouts (n, R), codes (n, K).
    """
    wide = readouts.astype(np.float64)
    mean, shift = wide.mean(axis=0), codes.astype(np.float64).mean(axis=0)
    centred = wide - mean
    gram = centred.T @ centred
    gram += np.eye(len(gram)) * (RIDGE * np.trace(gram) / len(gram) + 1e-12)
    matrix = np.linalg.solve(gram, centred.T @ (codes - shift))
    return CodeSpace(mean.astype(np.float32), matrix.astype(np.float32), shift.astype(np.float32), bits, of)
