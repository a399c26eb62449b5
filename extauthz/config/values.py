"""How the config writes amounts, durations and addresses."""

import re
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationInfo

from extauthz.money import AmountError, parse_usd

_DURATION = re.compile(r"(\d+)(ms|s|m|h|d)")
_DIGITS_MAX = 12
_DURATION_MS_MAX = 366 * 86_400_000
_PRICE_MAX = 1_000_000
_PRICE_STEP = Decimal("1e-12")
_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]\s]+):(\d{1,5})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,127}")


class Address(NamedTuple):
    """A TCP address to listen on."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def duration_ms(value: Any) -> int:
    """A duration as it is written, such as 15m.

    Raises:
        ValueError: it is none, or too long.
    """
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None or len(match[1]) > _DIGITS_MAX:
        raise ValueError("write a duration with its unit, such as 500ms, 30s, 15m, 1h or 7d")
    length_ms = int(match[1]) * _UNIT_MS[match[2]]
    if length_ms > _DURATION_MS_MAX:
        raise ValueError("a duration is at most 366d")
    return length_ms


def _above_zero(length_ms: int) -> int:
    # For Envoy a limit of zero is no limit, and what is remembered for no time is not remembered.
    if length_ms == 0:
        raise ValueError("this duration is above zero")
    return length_ms


def _address(value: Any) -> Address:
    match = _ADDRESS.fullmatch(value) if isinstance(value, str) else None
    if match is None or not 1 <= int(match[2]) <= 65_535:
        raise ValueError("write an address as HOST:PORT, such as 127.0.0.1:10000")
    return Address(match[1].strip("[]"), int(match[2]))


def _decimal(value: Any) -> Decimal:
    # The YAML loader reads numbers with a point as Decimal; bool is an int in Python.
    if isinstance(value, bool) or not isinstance(value, (int, str, Decimal)):
        raise ValueError("write a decimal number, such as 25.00")  # noqa: TRY004 - pydantic collects ValueError
    try:
        number = Decimal(value)
    except ArithmeticError as error:
        raise ValueError("write a decimal number, such as 25.00") from error
    if not number.is_finite() or number < 0:
        raise ValueError("write a number of zero or more")
    return number


def _name(value: Any) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError("a name is made of letters, digits and . _ @ - (at most 128 characters)")
    return value


def _price(value: Decimal) -> Decimal:
    if value > _PRICE_MAX or value != value.quantize(_PRICE_STEP):
        raise ValueError(
            f"a price is at most {_PRICE_MAX} USD per million tokens, with twelve decimal places"
        )
    return value


def _whole(value: Any) -> Any:
    if isinstance(value, bool):  # which Python, and so pydantic, takes for 1 or 0
        raise ValueError("write a whole number")  # noqa: TRY004 - pydantic collects ValueError
    return value


def _from_the_files_folder(path: Path, info: ValidationInfo) -> Path:
    """A relative path is relative to the file it stands in, wherever the command was started."""
    base: Path | None = (info.context or {}).get("base")
    return path if base is None else (base / path).resolve()


def _path(value: Any) -> Path:
    if not isinstance(value, (str, Path)) or not str(value):
        raise ValueError("write a path")
    try:
        return Path(value).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{value}: there is no such user's folder") from error


def usd_to_nano(value: Decimal) -> int:
    """An amount in USD as nano-USD; the error says what is wrong with it."""
    try:
        return parse_usd(value)
    except AmountError as error:
        raise ValueError(str(error)) from error


DurationMs = Annotated[int, BeforeValidator(duration_ms)]
DurationMsAboveZero = Annotated[DurationMs, AfterValidator(_above_zero)]
ListenAddress = Annotated[Address, BeforeValidator(_address)]
Number = Annotated[Decimal, BeforeValidator(_decimal)]
Name = Annotated[str, BeforeValidator(_name)]
Price = Annotated[Number, AfterValidator(_price)]
Whole = Annotated[int, BeforeValidator(_whole)]
ConfigPath = Annotated[Path, BeforeValidator(_path), AfterValidator(_from_the_files_folder)]


class Block(BaseModel):
    """A mapping of the config file: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)
