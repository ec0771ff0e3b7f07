"""The engine's refusals and failures as the errors that DSPy knows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from dspy import lm15  # type: ignore[import-untyped]

from engine.request import AdmissionRefused, Fault, FinishReason, RequestError, TooLong
from engine.server.engine_thread import End, EngineDead
from engine.server.errors import ApiError

PROVIDER = "radixlab"
_RETRY_S = 1.0
"""Seconds after which DSPy may try again what the admission policy refused."""


@contextlib.contextmanager
def as_lm15() -> Iterator[None]:
    """What the engine raises inside becomes a dspy.lm15 error."""
    try:
        yield
    except TooLong as error:
        raise lm15.ContextLengthError(str(error), provider=PROVIDER) from None
    except AdmissionRefused as error:
        raise lm15.RateLimitError(str(error), provider=PROVIDER, retry_after=_RETRY_S) from None
    except RequestError as error:
        raise invalid(str(error)) from None
    except ApiError as error:  # of what is read by the server's models
        if error.code not in ("unsupported_parameter", "unknown_parameter"):
            raise invalid(error.message) from None
        feature = f"config.extensions.{error.param}"
        raise lm15.UnsupportedFeatureError(error.message, feature=feature, provider=PROVIDER) from None
    except EngineDead as error:
        raise stopped(str(error)) from None


def invalid(why: str) -> lm15.InvalidRequestError:
    return lm15.InvalidRequestError(why, provider=PROVIDER)


def unsupported(feature: str, why: str) -> lm15.UnsupportedFeatureError:
    """feature: the path of what isn't served, in the request. why: what to do."""
    return lm15.UnsupportedFeatureError(f"{feature} is not supported: {why}", feature=feature, provider=PROVIDER)


def stopped(why: str) -> lm15.ConfigurationError:
    """Of a kind that DSPy doesn't try again."""
    return lm15.ConfigurationError(f"{why}; make another DSPyEngine", provider=PROVIDER)


def failure(end: End) -> lm15.LM15Error | None:
    """Why there is no answer; None where there is one."""
    if end.late:
        seconds = end.finished_at - end.arrival
        told = f"the call's time was up after {seconds:.1f} s and {end.output_tokens} output tokens"
        return lm15.TimeoutError(f"{told}: raise the timeout of the DSPyEngine", provider=PROVIDER)
    if end.reason is FinishReason.ABORT:
        return stopped("the engine was closed and has ended the call")
    if end.reason is not FinishReason.ERROR:
        return None
    if end.fault is Fault.CALLER:
        return invalid(str(end.error))
    if end.fault is Fault.LOAD:
        told = f"refused by the admission policy: {end.error}"
        return lm15.RateLimitError(told, provider=PROVIDER, retry_after=_RETRY_S)
    return lm15.ServerError(f"a step of the engine failed: {end.error}", provider=PROVIDER)
