"""On the device, batch by batch: which copy of its expert each token of a batch goes to."""

from eplb.errors import MissingExtraError

try:
    from eplb.torch.batch import BatchDispatch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise MissingExtraError("torch", "torch", "dispatch on the device") from None

__all__ = ["BatchDispatch"]
