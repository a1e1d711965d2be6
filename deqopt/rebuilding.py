"""From the settings in a checkpoint to the parts of a module, without code of anyone the user does not know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch import LightningModule
from lightning.pytorch.core.saving import CHECKPOINT_PAST_HPARAMS_KEYS

from deqopt.checkpoints import verified
from deqopt.command_line.bounded import ExcessError, refuse_excess
from deqopt.errors import CheckpointError, DeqoptError
from deqopt.import_guard import guarded, refuse_code
from deqopt.trust import class_paths, require_trusted, trusting

if TYPE_CHECKING:
    from typing_extensions import Self

INSTANTIATOR = "_instantiator"
"""The key by which Lightning knows that parts are described."""


class FromCheckpoint(LightningModule):
    """A LightningModule that a checkpoint describes, and that is made again without trusting the checkpoint."""

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | PathLike[str] | IO[bytes],
        map_location: Any = None,
        hparams_file: None = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        *,
        trust: Sequence[str | type] = (),
        **parts: Any,
    ) -> Self:
        """The module that a checkpoint describes, with its weights.

        A checkpoint may name classes of deqopt, of installed plugins, and those that the program has imported itself.

        Args:
            checkpoint_path: the file, or an open one.
            map_location: see :func:`torch.load`.
            hparams_file: not supported: give ``parts``.
            strict: whether the weights must be those of the module, all of them; as the module says by default.
            weights_only: False unpickles what is not plain data, which can run anything. By default True.
            trust: packages, modules or classes besides that the checkpoint may name, such as ``["my_package"]``.
            parts: arguments of the module that take the place of those in the checkpoint.

        Raises:
            CheckpointError: no such file, or it is damaged, or not written by deqopt.
            TrustError: it names a class that it may not; nothing was imported.
        """
        if hparams_file is not None:
            raise CheckpointError("hparams_file: give the parts themselves instead, as task= and solver=")
        stream, described = opened(checkpoint_path, map_location, weights_only is not False)
        if described is not None:
            with trusting(*trust):
                parts = rebuilt(cls, described, parts, str(checkpoint_path))
        found: Self = super().load_from_checkpoint(
            stream, map_location=map_location, strict=strict, weights_only=weights_only is not False, **parts
        )
        return found


def plain_settings(settings: Any, where: str) -> dict[str, Any]:
    """The settings of a checkpoint, where they are plain data of bounded size.

    Raises:
        CheckpointError: they are not.
    """
    try:
        refuse_excess(settings)
    except ExcessError as error:
        raise CheckpointError(f"the settings in {where}: {error}") from error
    if not isinstance(settings, dict) or not _is_plain(settings):
        raise CheckpointError(
            f"the settings in {where} are not plain: numbers, text, lists, and mappings of text to them"
        )
    return settings


def opened(
    checkpoint: str | PathLike[str] | IO[bytes], map_location: Any, weights_only: bool
) -> tuple[IO[bytes], dict[str, Any] | None]:
    """A checkpoint without the settings by which Lightning would build a module, and these settings.

    They are None where the module cannot be built from them.

    Raises:
        CheckpointError: see :func:`deqopt.checkpoints.read` and :func:`plain_settings`.
    """
    data = verified(Path(checkpoint)) if isinstance(checkpoint, (str, PathLike)) else checkpoint.read()
    try:
        content = torch.load(BytesIO(data), map_location=map_location, weights_only=weights_only)
    except Exception as error:  # torch.load raises whatever the bytes happen to trigger
        raise CheckpointError(
            f"{checkpoint} cannot be read as a checkpoint; it is damaged or of another program"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise CheckpointError(f"{checkpoint} is no checkpoint of Lightning: it has no weights")
    kept = {key: value for key, value in content.items() if key not in CHECKPOINT_PAST_HPARAMS_KEYS}
    settings = kept.get("hyper_parameters")
    described = None
    if isinstance(settings, Mapping) and INSTANTIATOR in settings:
        described = plain_settings(dict(settings), str(checkpoint))
        del kept["hyper_parameters"]
    stream = BytesIO()
    torch.save(kept, stream)
    stream.seek(0)
    return stream, described


def rebuilt(kind: type, described: Mapping[str, Any], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The arguments of a LightningModule: its parts as they are described, or as they are given.

    Args:
        kind: the class of the module.
        described: the hyper-parameters of a checkpoint.
        given: arguments that take the place of those described.
        where: the checkpoint, for messages.

    Raises:
        TrustError: see :func:`deqopt.trust.require_trusted`; or a description names a function.
        CheckpointError: the settings fit no class.
    """
    parts = {key: value for key, value in described.items() if key not in (INSTANTIATOR, *given)}
    require_trusted(parts, where)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "module", fail_untyped=False, instantiate=False)
    with guarded(*class_paths(parts)):
        try:
            parsed = parser.parse_object({"module": {**parts, **given}})
            refuse_code(parsed)
            made = parser.instantiate_classes(parsed).module
        except (ArgumentError, TypeError, ValueError, ImportError, AttributeError) as error:
            if isinstance(error, DeqoptError):
                raise
            raise CheckpointError(f"{where}: its settings fit no class: {' '.join(str(error).split())}") from error
    return {key: value for key, value in vars(made).items() if key in parts or key in given}


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, int, float))
