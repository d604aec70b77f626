"""What was seen of the stack, printed as it is seen, and what therefore stays unproven."""

from __future__ import annotations

import time

from tests.compose.confinement import user
from tests.compose.images import Images
from tests.compose.stack import BASE_IMAGE, OUR_IMAGES, Stack


class Report:
    """`-s` shows it."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        print()

    def saw(self, what: str) -> None:
        print(f"{time.monotonic() - self._began:5.0f} s  {what}", flush=True)

    def end(self, stack: Stack, images: Images) -> None:
        """Each service with its image, what that was, and the user its first process runs as."""
        unproven: dict[str, set[str]] = {}
        print(f"\nby {stack.version()}")
        print(f"{'service':<16}{'image':<47}{'user':<7}what ran")
        for service, container in sorted(stack.containers().items()):
            image = container["Config"]["Image"]
            stand_in, ours = images.stand_in(image), image in OUR_IMAGES
            uid = user(container) if container["State"]["Running"] else "ended"
            what = stand_in or (BASE_IMAGE if ours else "the real image")
            print(f"{service:<16}{image:<47}{uid:<7}{'our Dockerfile over ' if ours else ''}{what}")
            if stand_in:
                unproven.setdefault(stand_in, set()).add(BASE_IMAGE if ours else image)
        for stand_in, stood_for in sorted(unproven.items()):
            print(f"Unproven: {', '.join(sorted(stood_for))}; {stand_in} stood in")
        if not unproven:
            print("Every image was the real one.")
