"""URLs of stores: what of them may be shown, and passwords as people type them."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

HIDDEN = "***"
_PASSWORD_OPTION = re.compile(r"[?&][^=&?]*password=", re.IGNORECASE)
_WITHOUT_USER = re.compile(
    r"/|(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]+)?(?:,[^@/?]*)?(?:/[^@?]*)?\?"
)
"""A path, or an address and a query behind it: an `@` in there is no end of a password."""
_WORD = re.compile(r"[A-Za-z0-9]+")
_NAME = re.compile(r"[A-Za-z0-9._-]+")


def redacted(url: str) -> str:
    """Return the URL without any part of a password, however it is written.

    A password may hold what would end it in a proper URL. So everything up to the last `@` is one,
    but for a plain user name before the first colon, and so is everything behind `password=`.
    """
    scheme, separator, rest = url.rpartition("://") if url.count("://") == 1 else ("", "", url)
    if not separator and "://" in url:
        scheme, separator, rest = url.partition("://")
    before = scheme + separator if _NAME.sub("", scheme) in ("", "+") else HIDDEN
    option = _PASSWORD_OPTION.search(rest)
    last = rest.rfind("@")
    if option is not None:
        if last > option.end():
            return before + HIDDEN  # part of whichever password it is
        rest = rest[: option.end()] + HIDDEN
    if last < 0:
        return before + rest
    user, colon, _ = rest[:last].partition(":")
    shown = user + ":" if colon and (not user or _NAME.fullmatch(user)) else ""
    return before + shown + HIDDEN + rest[last:]


def tells_nothing_hidden(text: str, url: str) -> bool:
    """Return True if a text holds no word of the URL that may not be shown."""
    hidden = {*_WORD.findall(url), *_WORD.findall(unquote(url))} - {*_WORD.findall(redacted(url))}
    return not any(word in text for word in hidden)


def tidy(url: str) -> str:
    """Return the URL with a user name and a password that hold nothing of meaning in a URL.

    `/`, `?`, `#` and `@` in a password end it where they stand for the parsers, which then complain
    of its second half.
    """
    scheme, separator, rest = url.partition("://")
    option = _PASSWORD_OPTION.search(rest)
    last = rest.rfind("@")
    if last < 0 or (option is not None and "@" not in rest[: option.start()]):
        return url
    if _WITHOUT_USER.match(rest):
        return url
    if option is not None and option.start() > rest.find("@"):
        last = rest[: option.start()].rfind("@")
    user, colon, password = rest[:last].partition(":")
    userinfo = quote(unquote(user), safe="") + colon + quote(unquote(password), safe="")
    return f"{scheme}{separator}{userinfo}{rest[last:]}"
