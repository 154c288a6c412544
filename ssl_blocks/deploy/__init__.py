"""What people do with a finished run: features of their images, predictions, programs for elsewhere, a repository."""

from typing import TYPE_CHECKING

from ssl_blocks.lazy import lazily

if TYPE_CHECKING:
    from ssl_blocks.deploy.features import Embedded as Embedded, embed as embed
    from ssl_blocks.deploy.hub import Pushed as Pushed, push as push
    from ssl_blocks.deploy.predictions import Predicted as Predicted, predict as predict
    from ssl_blocks.deploy.programs import Exported as Exported, export as export
    from ssl_blocks.deploy.state import load_objective as load_objective
else:
    __getattr__, __dir__ = lazily(__name__, __file__)
