"""Text that others wrote, made fit for a terminal."""

__all__ = ["printable"]


def printable(text: object) -> str:
    """Text with whatever a terminal would act on written as an escape: names come from files."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in str(text)
    )
