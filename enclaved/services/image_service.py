"""ImageService: brings images to the engine."""

from __future__ import annotations

from contextlib import aclosing

from ms_enclave.v1.image_service_pb2 import PullImageRequest

from enclaved.core.images import Images
from enclaved.services import _convert as convert
from enclaved.services._interceptors import Context


class ImageService:
    """Serves ``ms_enclave.v1.ImageService``."""

    def __init__(self, images: Images) -> None:
        self._images = images

    async def pull_image(self, request: PullImageRequest, context: Context) -> None:
        """Streams how far a pull is. A client that leaves does not end it."""
        async with aclosing(self._images.pull(request.image)) as steps:
            async for step in steps:
                await context.write(convert.pull_progress(step))
