"""URLs of APIs in a configuration."""

HIGHEST_PORT = 65535


def check_api_url(key: str, url: str) -> None:
    """Raise ValueError, naming the `key`, for an invalid API URL or one with a password."""
    import httpx

    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"{key} {url!r} is not a URL: {error}") from None
    if parsed.userinfo:
        raise ValueError(
            f"{key} has a user or password: put the API's key into the environment instead; only that is sent"
        )
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise ValueError(f"{key} {url!r}: expected http:// or https:// and a host, ending in /v1")
    if (parsed.port or 0) > HIGHEST_PORT:
        raise ValueError(f"{key} {url!r}: port {parsed.port} is above {HIGHEST_PORT}")
